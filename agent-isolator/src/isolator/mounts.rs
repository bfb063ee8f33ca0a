//! What Mesos's launch helper does for a container, as root, in the container's new mount namespace, before its first
//! program: it makes the mounts one after the other, then runs the commands, and ends the container at the first that
//! fails.
//!
//! A volume is bound to its target as the host has it mounted, with nosuid and nodev. For a read-only one that takes a
//! remount, and the helper's own (for MS_BIND | MS_RDONLY) would set read-only *in place of* the flags that were
//! there: so the remount is a mount of its own here, which sets all three.
//!
//! Between the moment that a target was made and this one, users' programs have run: the fetcher unpacks archives into
//! the sandbox, and another task of the same user may write there. A link in the target's place would lead the mount
//! elsewhere, to `/etc` of the host. So links lead nowhere while volumes are mounted: what users can write is bound to
//! its own place, follows no links, and follows them again behind the last volume. A launch that meets a link fails.
//! No program is run for this: it would be root's, and found by a path that the container's mounts may cover.
//!
//! Without an image a container sees the host's tree, and there the volumes of other containers, and the sockets by which they
//! are mounted. An empty file system above each such directory hides them: last, for our own binds come from below it. The copies beneath are unmounted with
//! the host's mounts all the same, for an unmount propagates to their place, not to their path. A volume without a
//! container path is one that its task reads at the host's path: it is kept aside meanwhile, and bound there again.

use std::path::{Path, PathBuf};

use prost::Message;

use crate::mesos::{
    BIND, ContainerLaunchInfo, ContainerMountInfo, NEW_MOUNT_NAMESPACE, NO_LINKS, NODEV, NOEXEC, NOSUID,
    READ_ONLY, REMOUNT_BIND,
};
use crate::parameters::KeeperParameters;
use crate::rules;
use crate::wire::Answer;

/// Where a volume goes in a container, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// A path in the host's tree.
    pub(super) path: String,
    pub(super) read_only: bool,
}

/// A directory below which users may put links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Guarded {
    /// Where nobody but root can put another in its place, or below one that comes before it.
    pub(super) path: String,
    /// Of [`READ_ONLY`], [`NOSUID`], [`NODEV`] and [`NOEXEC`], those that its mount has: they stay.
    pub(super) flags: u32,
}

/// All that is mounted for a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Targets {
    /// One for each volume, in their order; none for one without a container path.
    pub(super) volumes: Vec<Option<Target>>,
    /// Where no link is followed while volumes are mounted, from the outermost in.
    pub(super) guarded: Vec<Guarded>,
    /// The directories that the container sees empty.
    pub(super) hidden: Hidden,
}

/// Directories of the host that a container sees empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Hidden {
    pub(super) roots: Vec<String>,
    /// Those of sockets. The launch helper needs [`Hidden::aside`] below one of them until all else is mounted.
    pub(super) sockets: Vec<String>,
    /// A directory of this software's own; in a container that needs it, it holds nothing but its own volumes.
    pub(super) aside: String,
}

/// What a container is not to see of the host, as the parameters name it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ToHide {
    pub(super) roots: Vec<PathBuf>,
    pub(super) sockets: Vec<PathBuf>,
}

impl ToHide {
    pub(super) fn of(keeper: &KeeperParameters) -> Self {
        Self { roots: keeper.mount_roots.clone(), sockets: rules::of_no_container(keeper) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.roots.is_empty() && self.sockets.is_empty()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &PathBuf> {
        self.roots.iter().chain(&self.sockets)
    }

    /// What of it there is on the host. May block for as long as its file systems do.
    pub(super) fn present(&self, aside: String) -> Hidden {
        Hidden { roots: present(&self.roots), sockets: present(&self.sockets), aside }
    }
}

/// The answer to Mesos's prepare, from the keeper's.
pub(super) fn with_volumes(answer: Answer, targets: Targets) -> Result<Option<Vec<u8>>, String> {
    let Answer::Prepared { mount_points } = answer else {
        return Err("the keeper's answer is not one to prepare".into());
    };
    if mount_points.len() != targets.volumes.len() {
        return Err("the keeper's answer has another number of volumes than were asked for".into());
    }
    let Targets { volumes, guarded, hidden } = targets;
    let mut mounts: Vec<_> = guarded.iter().flat_map(follow_no_links).collect();
    let mut again = Vec::new();
    let is_hidden = |point: &str| hidden.roots.iter().any(|root| Path::new(point).starts_with(root));
    for (source, target) in mount_points.iter().zip(&volumes) {
        match target {
            Some(target) => mounts.extend(bind(source, &target.path, target.read_only)),
            None if is_hidden(source) => {
                if again.is_empty() {
                    mounts.push(empty(&hidden.aside, 0));
                }
                let aside = format!("{}/{}", hidden.aside, again.len());
                mounts.extend(bind(source, &aside, false));
                again.extend(bind(&aside, source, false));
            }
            None => {}
        }
    }
    mounts.extend(guarded.iter().rev().map(|guarded| remount(&guarded.path, guarded.flags)));
    // A directory for each of those that come back is made in the empty file system.
    mounts.extend(hidden.roots.iter().map(|root| empty(root, if again.is_empty() { READ_ONLY } else { 0 })));
    if !again.is_empty() {
        mounts.append(&mut again);
        mounts.extend(hidden.roots.iter().map(|root| read_only(root, NOEXEC)));
    }
    mounts.extend(hidden.sockets.iter().map(|directory| empty(directory, READ_ONLY)));
    Ok(Some(launch_info(mounts)))
}

/// The answer for a container without volumes; none where nothing is hidden.
pub(super) fn without_volumes(hidden: &Hidden) -> Option<Vec<u8>> {
    let all = hidden.roots.iter().chain(&hidden.sockets);
    let mounts: Vec<_> = all.map(|directory| empty(directory, READ_ONLY)).collect();
    (!mounts.is_empty()).then(|| launch_info(mounts))
}

fn launch_info(mounts: Vec<ContainerMountInfo>) -> Vec<u8> {
    let clone_namespaces = vec![NEW_MOUNT_NAMESPACE];
    ContainerLaunchInfo { clone_namespaces, mounts, ..Default::default() }.encode_to_vec()
}

/// The flag belongs to a mount: a directory gets one of its own, with all that is mounted below it.
fn follow_no_links(guarded: &Guarded) -> impl Iterator<Item = ContainerMountInfo> {
    let Guarded { path, flags } = guarded;
    bind(path, path, false).chain([remount(path, flags | NO_LINKS)])
}

fn bind(source: &str, target: &str, only_read: bool) -> impl Iterator<Item = ContainerMountInfo> {
    let bound = ContainerMountInfo {
        target: target.to_owned(),
        source: Some(source.to_owned()),
        flags: Some(BIND),
        ..Default::default()
    };
    [bound].into_iter().chain(only_read.then(|| read_only(target, 0)))
}

/// Makes a mount read-only.
fn read_only(target: &str, more: u32) -> ContainerMountInfo {
    remount(target, READ_ONLY | NOSUID | NODEV | more)
}

/// A mount has these flags then, whatever it had.
fn remount(target: &str, flags: u32) -> ContainerMountInfo {
    ContainerMountInfo { target: target.to_owned(), flags: Some(REMOUNT_BIND | flags), ..Default::default() }
}

/// An empty file system. Without a source: the helper makes missing targets of mounts that have one, on the host.
fn empty(directory: &str, more: u32) -> ContainerMountInfo {
    ContainerMountInfo {
        target: directory.to_owned(),
        source: None,
        r#type: Some("tmpfs".into()),
        flags: Some(NOSUID | NODEV | NOEXEC | more),
        options: Some("size=64k,nr_inodes=256,mode=0755".into()),
    }
}

/// Which of these directories there are on the host: nothing is made there, and a container that needs no volume does
/// not fail for a missing one.
fn present(roots: &[PathBuf]) -> Vec<String> {
    let directories = roots.iter().filter(|root| root.is_dir());
    let mut real: Vec<_> = directories.filter_map(|root| root.canonicalize().ok()).collect();
    // Below one that is hidden there is nothing left to mount on.
    real.sort();
    real.dedup_by(|below, above| below.starts_with(above));
    real.into_iter().filter_map(|root| root.into_os_string().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_are_the_roots_and_what_no_container_needs() {
        let drivers = r#"{"vfs": {"storage": "directory", "directories": "/var/lib/vfs/vol"}}"#;
        let pairs = [("etcd_endpoints", "h:1"), ("mount_roots", "/m"), ("drivers", drivers)];
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let hidden = ToHide::of(&KeeperParameters::read(&pairs).unwrap());
        let paths: Vec<_> = hidden.all().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/m", "/run/extvol", rules::PLUGIN_SOCKETS, "/var/lib/vfs/vol"]);
    }

    fn target(path: &str, read_only: bool) -> Option<Target> {
        Some(Target { path: path.into(), read_only })
    }

    /// `target <- source or type flags`, one line a mount.
    fn shown(info: &ContainerLaunchInfo) -> Vec<String> {
        let show = |mount: &ContainerMountInfo| {
            let what = mount.source.as_deref().or(mount.r#type.as_deref()).unwrap_or("-");
            let flags = mount.flags.unwrap_or(0);
            let names = [
                (READ_ONLY, "ro"),
                (NOSUID, "nosuid"),
                (NODEV, "nodev"),
                (NO_LINKS, "nolinks"),
                (REMOUNT_BIND, "remount"),
            ];
            let names = names.iter().filter(|(bits, _)| flags & bits == *bits).map(|(_, name)| *name);
            format!("{} <- {what} {}", mount.target, names.collect::<Vec<_>>().join(","))
        };
        info.mounts.iter().map(show).collect()
    }

    fn with(points: &[&str], volumes: Vec<Option<Target>>, roots: &[&str]) -> ContainerLaunchInfo {
        let mount_points = points.iter().map(|point| (*point).to_owned()).collect();
        let roots: Vec<String> = roots.iter().map(|root| (*root).to_owned()).collect();
        let sockets = roots.first().map(|_| "/run/extvol".into()).into_iter().collect();
        let hidden = Hidden { roots, sockets, aside: "/run/extvol".into() };
        let targets = Targets { volumes, guarded: vec![], hidden };
        let bytes = with_volumes(Answer::Prepared { mount_points }, targets).unwrap().unwrap();
        ContainerLaunchInfo::decode(bytes.as_slice()).unwrap()
    }

    #[test]
    fn each_volume_is_bound_where_it_goes_and_the_rest_of_the_roots_is_hidden_behind_that() {
        let info = with(&["/m/a", "/m/b"], vec![target("/s/a", false), target("/s/b", true)], &["/m"]);
        let expected = [
            "/s/a <- /m/a ",
            "/s/b <- /m/b ",
            "/s/b <- - ro,nosuid,nodev,remount",
            "/m <- tmpfs ro,nosuid,nodev",
            "/run/extvol <- tmpfs ro,nosuid,nodev",
        ];
        assert_eq!(shown(&info), expected);
        assert_eq!(info.clone_namespaces, [NEW_MOUNT_NAMESPACE]);
        // A target is not made for them: the host would have it.
        assert!(info.mounts[2..].iter().all(|mount| mount.source.is_none()));
    }

    #[test]
    fn a_volume_without_a_container_path_stays_at_the_hosts_path() {
        let info = with(&["/m/a", "/m/b", "/m/c"], vec![None, target("/s/b", false), None], &["/m"]);
        let expected = [
            "/run/extvol <- tmpfs nosuid,nodev",
            "/run/extvol/0 <- /m/a ",
            "/s/b <- /m/b ",
            "/run/extvol/1 <- /m/c ",
            "/m <- tmpfs nosuid,nodev",
            "/m/a <- /run/extvol/0 ",
            "/m/c <- /run/extvol/1 ",
            "/m <- - ro,nosuid,nodev,remount",
            "/run/extvol <- tmpfs ro,nosuid,nodev",
        ];
        assert_eq!(shown(&info), expected);
        let info = with(&["/m/a"], vec![None], &[]);
        assert!(info.mounts.is_empty());
        assert_eq!(info.clone_namespaces, [NEW_MOUNT_NAMESPACE]);
    }

    #[test]
    fn an_answer_that_is_not_to_the_question_is_refused() {
        assert!(with_volumes(Answer::Done, Targets::default()).is_err());
        let one = Targets { volumes: vec![None], ..Default::default() };
        assert!(with_volumes(Answer::Prepared { mount_points: vec![] }, one).is_err());
    }

    #[test]
    fn a_container_without_volumes_gets_nothing_where_nothing_is_hidden() {
        assert_eq!(without_volumes(&Hidden::default()), None);
        let hidden =
            Hidden { roots: vec!["/m".into()], sockets: vec!["/p".into()], aside: "/run/extvol".into() };
        let info = ContainerLaunchInfo::decode(without_volumes(&hidden).unwrap().as_slice()).unwrap();
        assert_eq!(shown(&info), ["/m <- tmpfs ro,nosuid,nodev", "/p <- tmpfs ro,nosuid,nodev"]);
    }

    #[test]
    fn only_roots_that_are_there_are_hidden_and_each_once() {
        let host = tempfile::tempdir().unwrap();
        let at = |name: &str| host.path().canonicalize().unwrap().join(name);
        std::fs::create_dir_all(at("a/below")).unwrap();
        std::fs::create_dir(at("a-b")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink(at("a"), at("link")).unwrap();
        let roots = [at("missing"), at("file"), at("link"), at("a-b"), at("a/below"), at("a")];
        let expected: Vec<_> =
            ["a", "a-b"].map(|name| at(name).into_os_string().into_string().unwrap()).into();
        assert_eq!(present(&roots), expected);
    }

    fn guarded(path: &str, volumes: Vec<Option<Target>>, points: &[&str]) -> ContainerLaunchInfo {
        let mount_points = points.iter().map(|point| (*point).to_owned()).collect();
        let guarded = vec![Guarded { path: path.into(), flags: NOSUID }];
        let targets = Targets { volumes, guarded, hidden: Hidden::default() };
        let bytes = with_volumes(Answer::Prepared { mount_points }, targets).unwrap().unwrap();
        ContainerLaunchInfo::decode(bytes.as_slice()).unwrap()
    }

    /// A program would be root's, at a path that the container's own mounts may cover.
    #[test]
    fn links_lead_nowhere_while_volumes_are_mounted_and_no_program_is_run_for_that() {
        let info = guarded("/s", vec![target("/s/a", true)], &["/m/a"]);
        let expected = [
            "/s <- /s ",
            "/s <- - nosuid,nolinks,remount",
            "/s/a <- /m/a ",
            "/s/a <- - ro,nosuid,nodev,remount",
            "/s <- - nosuid,remount",
        ];
        assert_eq!(shown(&info), expected);
        assert!(info.pre_exec_commands.is_empty());
    }

    /// Makes the mounts as Mesos's launch helper does, each with mount(2), in a mount namespace of its own; then a file
    /// in each place.
    const LAUNCH: &str = "
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for line in sys.argv[1:]:
    target, source, flags = line.split(',')
    if libc.mount(source.encode() or None, target.encode(), None, ctypes.c_ulong(int(flags)), None):
        sys.exit(target + ': ' + os.strerror(ctypes.get_errno()))
for line in sys.argv[1:]:
    open(line.split(',')[0] + '/seen', 'w')
";

    fn launch(info: &ContainerLaunchInfo) -> Result<(), String> {
        let line = |mount: &ContainerMountInfo| {
            let source = mount.source.as_deref().unwrap_or_default();
            format!("{},{source},{}", mount.target, mount.flags.unwrap_or(0))
        };
        let output = std::process::Command::new("unshare")
            .args(["--mount", "--propagation", "slave", "python3", "-c", LAUNCH])
            .args(info.mounts.iter().map(line))
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        if output.status.success() { Ok(()) } else { Err(said) }
    }

    #[test]
    fn root_a_volume_is_mounted_on_its_target_and_never_through_a_link_in_its_place() {
        let host = tempfile::tempdir().unwrap();
        let host = host.path().canonicalize().unwrap();
        let at = |name: &str| host.join(name).into_os_string().into_string().unwrap();
        for name in ["volume", "sandbox/data", "etc"] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        std::os::unix::fs::symlink(at("etc"), at("sandbox/link")).unwrap();
        std::os::unix::fs::symlink(at(""), at("sandbox/up")).unwrap();
        let run = |name: &str| {
            let targets = vec![target(&at(name), false)];
            launch(&guarded(&at("sandbox"), targets, &[&at("volume")]))
        };
        for name in ["sandbox/link", "sandbox/up/etc"] {
            let error = run(name).unwrap_err();
            assert!(error.starts_with(&at(name)) && error.contains("symbolic links"), "{error}");
        }
        assert_eq!(run("sandbox/data"), Ok(()));
        assert!(host.join("volume/seen").exists() && host.join("sandbox/seen").exists());
        assert!(!host.join("sandbox/data/seen").exists());
    }
}
