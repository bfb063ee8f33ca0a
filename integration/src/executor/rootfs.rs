//! Entering a task's image: the executor starts itself again with [`SUBCOMMAND`], and that process changes root, drops
//! to the task's user and becomes the task. A program of its own in place of a hook between fork and exec, because
//! such a hook may not allocate or take a lock.

use std::{
    convert::Infallible,
    ffi::OsString,
    fs,
    io::{self, Error, ErrorKind},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::Command,
};

use rustix::process::{Gid, Uid};
use serde::{Deserialize, Serialize};

use super::{protocol::CommandInfo, setup::Image};

/// The first argument of the process that enters an image; the second is an [`Entry`] in JSON.
pub(super) const SUBCOMMAND: &str = "enter-rootfs";

/// What the entering process needs to know.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    rootfs: PathBuf,
    working_directory: PathBuf,
    /// User, group and supplementary groups, resolved on the host, as Mesos does.
    identity: Option<(u32, u32, Vec<u32>)>,
    command: CommandInfo,
}

impl Entry {
    pub(super) fn new(command: &CommandInfo, image: &Image) -> io::Result<Self> {
        let identity = image
            .user
            .as_deref()
            .map(|user| {
                let (uid, gid) = find_user(&fs::read_to_string("/etc/passwd")?, user)
                    .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no user {user} on this host")))?;
                let mut groups = find_groups(&fs::read_to_string("/etc/group")?, user);
                groups.extend(&image.groups);
                groups.push(gid);
                groups.sort_unstable();
                groups.dedup();
                // The sandbox belongs to root so far; its new owner is the one who works in it.
                std::os::unix::fs::chown(".", Some(uid), Some(gid))?;
                Ok::<_, Error>((uid, gid, groups))
            })
            .transpose()?;
        Ok(Self {
            rootfs: image.rootfs.clone(),
            working_directory: image.working_directory.clone(),
            identity,
            command: command.clone(),
        })
    }
}

/// Becomes the task; returns only what went wrong. The process has one thread, so changing that thread's
/// credentials changes the process's.
pub(super) fn enter_and_exec(entry: Option<&OsString>) -> Error {
    match try_enter(entry) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn try_enter(entry: Option<&OsString>) -> io::Result<Infallible> {
    let entry: Entry = serde_json::from_str(entry.and_then(|entry| entry.to_str()).unwrap_or_default())?;
    let step = |what: &str, error: Error| Error::new(error.kind(), format!("{what}: {error}"));
    rustix::process::chroot(&entry.rootfs).map_err(|error| step("chroot", error.into()))?;
    // An image may name a working directory that it does not have.
    fs::create_dir_all(&entry.working_directory).map_err(|error| step("working directory", error))?;
    std::env::set_current_dir(&entry.working_directory).map_err(|error| step("working directory", error))?;
    if let Some((uid, gid, groups)) = &entry.identity {
        let groups: Vec<Gid> = groups.iter().map(|group| Gid::from_raw(*group)).collect();
        rustix::thread::set_thread_groups(&groups).map_err(|error| step("groups", error.into()))?;
        rustix::thread::set_thread_gid(Gid::from_raw(*gid)).map_err(|error| step("group", error.into()))?;
        rustix::thread::set_thread_uid(Uid::from_raw(*uid)).map_err(|error| step("user", error.into()))?;
    }
    Err(step("exec", process(&entry.command)?.exec()))
}

/// The process that a `CommandInfo` describes.
pub(super) fn process(command: &CommandInfo) -> io::Result<Command> {
    let value = command
        .value
        .as_ref()
        .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "the command has no value"))?;
    if command.shell {
        let mut process = Command::new("/bin/sh");
        process.arg0("sh").arg("-c").arg(value);
        return Ok(process);
    }
    let mut process = Command::new(value);
    if let Some((name, rest)) = command.arguments.split_first() {
        process.arg0(name).args(rest);
    }
    Ok(process)
}

/// User and group id from the text of `/etc/passwd`; a number stands for itself.
fn find_user(passwd: &str, user: &str) -> Option<(u32, u32)> {
    let by_number = user.parse::<u32>().ok();
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        (name == user || by_number == Some(uid)).then_some((uid, gid))
    })
}

/// The groups that name `user` as a member in the text of `/etc/group`.
fn find_groups(group: &str, user: &str) -> Vec<u32> {
    group
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':').skip(2);
            let gid = fields.next()?.parse().ok()?;
            fields.next()?.split(',').any(|member| member == user).then_some(gid)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_are_found_by_name_and_number() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65533:n:/:/usr/sbin/nologin\n";
        assert_eq!(find_user(passwd, "nobody"), Some((65534, 65533)));
        assert_eq!(find_user(passwd, "65534"), Some((65534, 65533)));
        assert_eq!(find_user(passwd, "nobod"), None);
        let group = "root:x:0:\ndisk:x:6:nobody,www\nwww:x:7:www\n";
        assert_eq!(find_groups(group, "nobody"), [6]);
    }

    #[test]
    fn a_command_without_value_is_refused() {
        let command =
            CommandInfo { shell: true, value: None, arguments: Vec::new(), environment: Default::default() };
        assert!(process(&command).is_err());
    }
}
