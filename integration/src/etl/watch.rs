//! What the job shows. On a real agent its standard output is the file `stdout` of its sandbox; the agents of a cluster on this machine
//! run in Mesos's local mode, which leaves it in the agent's own log. That can be read beside the host, also of one without power.

use std::fs;

use crate::cluster::Cluster;
use crate::scheduler::{TaskEvent, TaskState};

/// How each line of the job begins.
const LINE: &str = "etl: ";

/// Where a task of this app runs, or ran last.
pub(super) fn newest(history: &[TaskEvent]) -> Option<&TaskEvent> {
    history.iter().rev().find(|event| event.state == TaskState::Running)
}

/// The lines of jobs on the task's host so far.
pub(super) fn output(cluster: &Cluster, task: &TaskEvent) -> String {
    let Some(host) = task.hostname.as_deref() else { return String::new() };
    let log = fs::read(cluster.logs().join(format!("{host}-agent.log"))).unwrap_or_default();
    lines(&String::from_utf8_lossy(&log))
}

fn lines(log: &str) -> String {
    let whole = log.rfind('\n').map_or("", |end| &log[..end]);
    whole.lines().filter_map(|line| line.strip_prefix(LINE)).collect::<Vec<_>>().join("\n")
}

/// The last line of progress, and how many rows are done.
pub(super) fn progress(output: &str) -> Option<(u64, &str)> {
    let line = output.lines().rev().find(|line| line.contains(" rows/s"))?;
    Some((line.split(' ').next()?.parse().ok()?, line))
}

/// The lines that are no progress.
pub(super) fn words(output: &str) -> Vec<&str> {
    output.lines().filter(|line| !line.contains(" rows/s")).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_last_whole_line_of_progress_counts() {
        let log = "I1127 agent\netl: begins\netl: 1000 of 5000 rows, 10 rows/s\netl: 2000 of 5000 rows, 20 rows/s\n\
                   I1127 more\netl: other\netl: 3";
        let output = super::lines(log);
        assert_eq!(super::progress(&output), Some((2000, "2000 of 5000 rows, 20 rows/s")));
        assert_eq!(super::words(&output), ["begins", "other"]);
        assert_eq!(super::progress("begins"), None);
    }
}
