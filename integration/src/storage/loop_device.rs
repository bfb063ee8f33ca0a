//! Loop devices: how a backing file becomes a block device, and how that device is cut off from it. The one file with
//! the loop driver's ioctls.
//!
//! Every device is *autoclear*: the kernel unbinds it when its last user (a mount, an open file, the control plane's
//! own [`LoopDevice`]) is gone. So nothing stays behind, however the control plane ends.
//!
//! # How a device is cut
//!
//! `LOOP_SET_STATUS64` with an offset of 2^62 bytes, far beyond any file. The driver freezes the queue, so that
//! requests under way end first, then applies the offset, then sets the capacity to 0. From then on a request is
//! refused by the block layer as beyond the end of the device; one that had passed that check before the freeze is
//! sent to position 2^62 + n of the backing file, where the file system answers EFBIG. Either way the writer sees an error and
//! no byte arrives. A size limit of one sector (`lo_sizelimit`) would be weaker: sector 0 stays writable, and a
//! request between thaw and the new capacity lands in the volume.
//!
//! Before the cut the driver flushes the device's own page cache (metadata of the old host's file system, which its
//! journal covers). That is still before the call returns. Pages of *files* that were dirty meet EIO later.
//!
//! Seen on Linux 6.18 with ext4 mounted and files open: O_DIRECT writes and fsync of buffered ones get EIO, writes to the
//! device itself ENOSPC, and the umount of the cut file system succeeds. A buffered `write` may still return success until the
//! journal aborts: it says nothing on any storage before its fsync.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{Getter, Ioctl, IoctlOutput, Opcode, Setter, ioctl};

const LOOP_SET_STATUS64: Opcode = 0x4C04;
const LOOP_GET_STATUS64: Opcode = 0x4C05;
const LOOP_CONFIGURE: Opcode = 0x4C0A;
const LOOP_CTL_ADD: Opcode = 0x4C80;
const LOOP_CTL_GET_FREE: Opcode = 0x4C82;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// Where a cut device points: beyond the largest file of every Linux file system that could hold a backing file
/// (ext4 16 TiB, xfs 8 EiB less one block of a volume nobody has), and below the 2^63 that the driver refuses.
const BEYOND_EVERY_FILE: u64 = 1 << 62;

/// How often a free device is looked for while other processes of the machine take them too.
const BIND_ATTEMPTS: u32 = 64;

/// The kernel's `struct loop_info64`; every field is naturally aligned, so there is no padding.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// The kernel's `struct loop_config`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const EMPTY_INFO: LoopInfo64 = LoopInfo64 {
    device: 0,
    inode: 0,
    rdevice: 0,
    offset: 0,
    sizelimit: 0,
    number: 0,
    encrypt_type: 0,
    encrypt_key_size: 0,
    flags: 0,
    file_name: [0; 64],
    crypt_name: [0; 64],
    encrypt_key: [0; 32],
    init: [0; 2],
};

/// A request to `/dev/loop-control`: a number goes in, a device number comes back as the call's own result.
struct ControlRequest {
    opcode: Opcode,
    number: usize,
}

#[expect(
    unsafe_code,
    reason = "rustix has no pattern for an ioctl that takes a number and answers by its result"
)]
// SAFETY: both requests of `/dev/loop-control` read their argument as a number and touch no memory of ours, so the
// "pointer" is never followed, `IS_MUTATING = false` is true, and the output is made from the result alone.
unsafe impl Ioctl for ControlRequest {
    type Output = u32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::without_provenance_mut(self.number)
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<u32> {
        u32::try_from(out).map_err(|_| Errno::RANGE)
    }
}

/// What a loop device is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding {
    /// To this backing file, and usable.
    Bound,
    /// To this backing file, but [cut](LoopDevice::cut).
    Cut,
    /// To nothing or to another file.
    Elsewhere,
}

/// A bound loop device, kept bound by this value. Dropping it unbinds the device once no mount and no open file uses it.
#[derive(Debug)]
pub struct LoopDevice {
    number: u32,
    file: File,
}

impl LoopDevice {
    /// Binds `backing` to a free device, to `/dev/loop<wanted>` if that one is free.
    ///
    /// # Errors
    /// The backing file or the loop driver cannot be opened, or no free device was found.
    pub fn bind(backing: &Path, wanted: Option<u32>) -> io::Result<Self> {
        let backing = File::options().read(true).write(true).open(backing)?;
        let mut next = wanted;
        for _ in 0..BIND_ATTEMPTS {
            let number = match next.take() {
                Some(number) => number,
                None => control(LOOP_CTL_GET_FREE, 0)?,
            };
            match Self::bind_to(&backing, number) {
                // Somebody else's device, or taken between question and use.
                Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {}
                outcome => return outcome,
            }
        }
        Err(io::Error::other(format!("no free loop device in {BIND_ATTEMPTS} attempts")))
    }

    fn bind_to(backing: &File, number: u32) -> io::Result<Self> {
        if !device_path(number).exists() {
            control(LOOP_CTL_ADD, usize::try_from(number).map_err(io::Error::other)?)?;
        }
        // Bound through a writable descriptor (else the device is read-only), kept by a read-only one: a kernel that
        // forbids writers beside a mount (BLK_DEV_WRITE_MOUNTED=n) would refuse every mount otherwise.
        let writable = File::options().read(true).write(true).open(device_path(number))?;
        let config = LoopConfig {
            fd: u32::try_from(backing.as_raw_fd()).map_err(io::Error::other)?,
            block_size: 0,
            info: LoopInfo64 { flags: LO_FLAGS_AUTOCLEAR, ..EMPTY_INFO },
            reserved: [0; 8],
        };
        configure(&writable, config)?;
        Ok(Self { number, file: File::open(device_path(number))? })
    }

    /// Takes over `/dev/loop<number>` if it is still bound to `backing`: what a restarted control plane does.
    ///
    /// # Errors
    /// The backing file or the device cannot be opened.
    pub fn adopt(backing: &Path, number: u32) -> io::Result<(Binding, Option<Self>)> {
        if !device_path(number).exists() {
            return Ok((Binding::Elsewhere, None));
        }
        let file = File::open(device_path(number))?;
        let info = match status(&file) {
            Ok(info) => info,
            Err(Errno::NXIO) => return Ok((Binding::Elsewhere, None)),
            Err(error) => return Err(error.into()),
        };
        let backing = backing.metadata()?;
        if (info.device, info.inode) != (backing.dev(), backing.ino()) {
            return Ok((Binding::Elsewhere, None));
        }
        let binding = if info.offset == 0 { Binding::Bound } else { Binding::Cut };
        Ok((binding, Some(Self { number, file })))
    }

    /// The N of `/dev/loopN`.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// `/dev/loopN`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        device_path(self.number)
    }

    /// [Cuts](Self::cut) the device if no mount in any namespace of this kernel, and nobody with `O_EXCL`, holds it, and
    /// says whether it did. The device is claimed meanwhile, so that no mount slips in between question and cut.
    ///
    /// # Errors
    /// As for [`Self::cut`], or the device cannot be opened for another reason than being held.
    pub fn cut_if_idle(&self) -> io::Result<bool> {
        match claim(&self.path())? {
            Some(claimed) => self.cut_through(&File::from(claimed)).map(|()| true),
            None => Ok(false),
        }
    }

    /// Cuts the device off from its backing file. When this returns, no byte that anybody writes to the device reaches
    /// the file any more, by whatever descriptor or mount; see the head of this file.
    ///
    /// # Errors
    /// The kernel refused (EBUSY: a kernel that lets nobody change a mounted loop device), or the device did not shrink
    /// to nothing. The device is then to be taken as *not* cut.
    pub fn cut(&self) -> io::Result<()> {
        self.cut_through(&self.file)
    }

    fn cut_through(&self, mut opened: &File) -> io::Result<()> {
        let info = status(opened)?;
        set_status(opened, LoopInfo64 { offset: BEYOND_EVERY_FILE, ..info })?;
        let size = opened.seek(SeekFrom::End(0))?;
        let offset = status(opened)?.offset;
        if size != 0 || offset != BEYOND_EVERY_FILE {
            return Err(io::Error::other(format!(
                "{} has {size} bytes at offset {offset} after its cut",
                self.path().display()
            )));
        }
        Ok(())
    }
}

/// Whether `open(device, O_RDONLY|O_EXCL)` succeeds: the proof of "unmounted everywhere".
///
/// # Errors
/// The device cannot be opened for another reason than being held.
pub fn is_idle(device: &Path) -> io::Result<bool> {
    Ok(claim(device)?.is_some())
}

fn claim(device: &Path) -> io::Result<Option<OwnedFd>> {
    match rustix::fs::open(device, OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty()) {
        Ok(claimed) => Ok(Some(claimed)),
        Err(Errno::BUSY) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn device_path(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

#[expect(unsafe_code, reason = "rustix has no safe ioctl")]
fn control(opcode: Opcode, number: usize) -> io::Result<u32> {
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    // SAFETY: the descriptor is that of the loop driver, which knows these opcodes (a file of another kind would answer
    // ENOTTY), and `ControlRequest` argues why no memory is touched.
    Ok(unsafe { ioctl(control.as_fd(), ControlRequest { opcode, number }) }?)
}

#[expect(unsafe_code, reason = "rustix has no safe ioctl")]
fn configure(device: &File, config: LoopConfig) -> rustix::io::Result<()> {
    // SAFETY: LOOP_CONFIGURE reads exactly one `struct loop_config`, whose layout `LoopConfig` repeats; it writes nothing
    // back and keeps no pointer. The descriptor in it is open for the length of the call.
    unsafe { ioctl(device.as_fd(), Setter::<LOOP_CONFIGURE, _>::new(config)) }
}

#[expect(unsafe_code, reason = "rustix has no safe ioctl")]
fn status(device: &File) -> rustix::io::Result<LoopInfo64> {
    // SAFETY: LOOP_GET_STATUS64 writes exactly one `struct loop_info64`, whose layout `LoopInfo64` repeats; every bit
    // pattern is a valid value of its integers and bytes.
    unsafe { ioctl(device.as_fd(), Getter::<LOOP_GET_STATUS64, LoopInfo64>::new()) }
}

#[expect(unsafe_code, reason = "rustix has no safe ioctl")]
fn set_status(device: &File, info: LoopInfo64) -> rustix::io::Result<()> {
    // SAFETY: LOOP_SET_STATUS64 reads exactly one `struct loop_info64` and keeps no pointer to it.
    unsafe { ioctl(device.as_fd(), Setter::<LOOP_SET_STATUS64, _>::new(info)) }
}

#[cfg(test)]
mod tests {
    use super::{LoopConfig, LoopInfo64};

    #[test]
    fn the_structures_have_the_sizes_of_the_kernel() {
        assert_eq!(size_of::<LoopInfo64>(), 232);
        assert_eq!(size_of::<LoopConfig>(), 304);
    }
}
