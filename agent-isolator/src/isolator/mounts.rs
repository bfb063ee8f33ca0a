//! What Mesos's launch helper does for a container, as root, in the container's new mount namespace, before its first
//! program: it makes the mounts one after the other, then runs the commands, and ends the container at the first that
//! fails.
//!
//! A volume is bound to its target as the host has it mounted, with nosuid and nodev. For a read-only one that takes a
//! remount, and the helper's own (for MS_BIND | MS_RDONLY) would set read-only *in place of* the flags that were
//! there: so the remount is a mount of its own here, which sets all three.
//!
//! Between the moment that a target was made and this one, users' programs have run: the fetcher unpacks archives into
//! the sandbox, and another task of the same user may write there. A link in the target's place leads the mount
//! elsewhere, to `/etc` of the host. So the helper looks, behind the mounts, whether each target is where it was made
//! and has something mounted on it; each mount has but one place.
//!
//! Without an image a container sees the host's tree, and there the volumes of other containers. An empty file system
//! above each mount root hides them: last, for our own binds come from below it. The copies beneath are unmounted with
//! the host's mounts all the same, for an unmount propagates to their place, not to their path. A volume without a
//! container path is one that its task reads at the host's path: it is kept aside meanwhile, and bound there again.

use std::path::{Path, PathBuf};

use prost::Message;

use crate::mesos::{
    BIND, CommandInfo, ContainerLaunchInfo, ContainerMountInfo, NEW_MOUNT_NAMESPACE, NODEV, NOEXEC, NOSUID,
    READ_ONLY, REMOUNT_BIND,
};
use crate::wire::Answer;

/// Where a volume goes in a container, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// A path in the host's tree.
    pub(super) path: String,
    pub(super) read_only: bool,
}

/// All that is mounted for a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Targets {
    /// One for each volume, in their order; none for one without a container path.
    pub(super) volumes: Vec<Option<Target>>,
    /// The directories that the container sees empty.
    pub(super) hidden: Hidden,
}

/// Directories of the host that a container sees empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Hidden {
    pub(super) roots: Vec<String>,
    /// A directory of this software's own; in a container that needs it, it holds nothing but its own volumes.
    pub(super) aside: String,
}

/// Looks at the targets, its arguments. `mountpoint .` asks whether another file system begins here.
const LOOK: &str = r#"for target; do
  cd -P -- "$target" && test "$(pwd -P)" = "$target" && mountpoint -q . && continue
  echo "extvol: the container path $target is not where its volume was to be mounted: something else was put in its place" >&2
  exit 1
done"#;

/// The answer to Mesos's prepare, from the keeper's.
pub(super) fn with_volumes(answer: Answer, targets: Targets) -> Result<Option<Vec<u8>>, String> {
    let Answer::Prepared { mount_points } = answer else {
        return Err("the keeper's answer is not one to prepare".into());
    };
    if mount_points.len() != targets.volumes.len() {
        return Err("the keeper's answer has another number of volumes than were asked for".into());
    }
    let Targets { volumes, hidden } = targets;
    let mut mounts = Vec::new();
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
    // A directory for each of those that come back is made in the empty file system.
    mounts.extend(hidden.roots.iter().map(|root| empty(root, if again.is_empty() { READ_ONLY } else { 0 })));
    if !again.is_empty() {
        mounts.append(&mut again);
        mounts.extend(hidden.roots.iter().map(|root| read_only(root, NOEXEC)));
    }
    let looked_at: Vec<_> = volumes.iter().flatten().map(|target| target.path.as_str()).collect();
    Ok(Some(launch_info(mounts, &looked_at)))
}

/// The answer for a container without volumes; none where nothing is hidden.
pub(super) fn without_volumes(hidden: &Hidden) -> Option<Vec<u8>> {
    let mounts: Vec<_> = hidden.roots.iter().map(|root| empty(root, READ_ONLY)).collect();
    (!mounts.is_empty()).then(|| launch_info(mounts, &[]))
}

fn launch_info(mounts: Vec<ContainerMountInfo>, looked_at: &[&str]) -> Vec<u8> {
    let arguments = ["sh", "-c", LOOK, "extvol"].iter().chain(looked_at);
    let look = CommandInfo {
        shell: Some(false),
        value: Some(b"/bin/sh".to_vec()),
        arguments: arguments.map(|argument| argument.as_bytes().to_vec()).collect(),
        environment: None,
    };
    let pre_exec_commands = if looked_at.is_empty() { Vec::new() } else { vec![look] };
    ContainerLaunchInfo { pre_exec_commands, clone_namespaces: vec![NEW_MOUNT_NAMESPACE], mounts }
        .encode_to_vec()
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

/// Makes a mount read-only; it has these flags then, whatever it had.
fn read_only(target: &str, more: u32) -> ContainerMountInfo {
    ContainerMountInfo {
        target: target.to_owned(),
        flags: Some(REMOUNT_BIND | READ_ONLY | NOSUID | NODEV | more),
        ..Default::default()
    }
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
/// not fail for a missing one. May block for as long as their file systems do.
pub(super) fn present(roots: &[PathBuf]) -> Vec<String> {
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

    fn target(path: &str, read_only: bool) -> Option<Target> {
        Some(Target { path: path.into(), read_only })
    }

    /// `target <- source or type flags`, one line a mount.
    fn shown(info: &ContainerLaunchInfo) -> Vec<String> {
        let show = |mount: &ContainerMountInfo| {
            let what = mount.source.as_deref().or(mount.r#type.as_deref()).unwrap_or("-");
            let flags = mount.flags.unwrap_or(0);
            let names = [(READ_ONLY, "ro"), (NOSUID, "nosuid"), (NODEV, "nodev"), (REMOUNT_BIND, "remount")];
            let names = names.iter().filter(|(bits, _)| flags & bits == *bits).map(|(_, name)| *name);
            format!("{} <- {what} {}", mount.target, names.collect::<Vec<_>>().join(","))
        };
        info.mounts.iter().map(show).collect()
    }

    fn with(points: &[&str], volumes: Vec<Option<Target>>, roots: &[&str]) -> ContainerLaunchInfo {
        let mount_points = points.iter().map(|point| (*point).to_owned()).collect();
        let roots = roots.iter().map(|root| (*root).to_owned()).collect();
        let targets = Targets { volumes, hidden: Hidden { roots, aside: "/run/extvol".into() } };
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
        ];
        assert_eq!(shown(&info), expected);
        assert_eq!(info.clone_namespaces, [NEW_MOUNT_NAMESPACE]);
        // A target is not made for them: the host would have it.
        assert!(info.mounts[2..].iter().all(|mount| mount.source.is_none()));
        let [look] = info.pre_exec_commands.as_slice() else { panic!("{info:?}") };
        assert_eq!((look.shell, look.value.as_deref()), (Some(false), Some(&b"/bin/sh"[..])));
        assert_eq!(look.arguments[3..], [b"extvol".to_vec(), b"/s/a".to_vec(), b"/s/b".to_vec()]);
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
        ];
        assert_eq!(shown(&info), expected);
        let info = with(&["/m/a"], vec![None], &[]);
        assert!(info.mounts.is_empty() && info.pre_exec_commands.is_empty());
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
        let hidden = Hidden { roots: vec!["/m".into()], aside: "/run/extvol".into() };
        let info = ContainerLaunchInfo::decode(without_volumes(&hidden).unwrap().as_slice()).unwrap();
        assert_eq!(shown(&info), ["/m <- tmpfs ro,nosuid,nodev"]);
        assert!(info.pre_exec_commands.is_empty());
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

    fn look(targets: &[&str]) -> (bool, String) {
        let output = std::process::Command::new("/bin/sh")
            .args(["-c", LOOK, "extvol"])
            .args(targets)
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    }

    #[test]
    fn a_target_with_nothing_mounted_or_with_a_link_on_the_way_is_found() {
        let host = tempfile::tempdir().unwrap();
        let host = host.path().canonicalize().unwrap();
        let at = |name: &str| host.join(name).into_os_string().into_string().unwrap();
        // A file system that is mounted everywhere.
        assert_eq!(look(&["/proc"]), (true, String::new()));
        assert_eq!(look(&[]), (true, String::new()));
        std::fs::create_dir(at("-n data")).unwrap();
        std::os::unix::fs::symlink("/proc", at("link")).unwrap();
        std::os::unix::fs::symlink("/", at("root")).unwrap();
        for target in [at("-n data"), at("link"), at("root/proc"), at("missing")] {
            let (good, said) = look(&["/proc", &target]);
            assert!(
                !good && said.contains(&format!("extvol: the container path {target} is not where")),
                "{said}"
            );
        }
    }
}
