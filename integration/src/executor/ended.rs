//! How a task's process ended, and how that is told.

/// How the task's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Exited(i32),
    Signalled {
        signal: i32,
        core_dumped: bool,
    },
    /// The kernel did not tell.
    Unknown,
}

impl Ended {
    /// In the words of Mesos's own command executor, which users and tools know.
    pub(super) fn describe(self) -> String {
        match self {
            Ended::Exited(status) => format!("Command exited with status {status}"),
            Ended::Signalled { signal, core_dumped } => {
                let dumped = if core_dumped { " (core dumped)" } else { "" };
                format!("Command terminated with signal {}{dumped}", signal_name(signal))
            }
            Ended::Unknown => "Failed to get exit status for Command".into(),
        }
    }
}

/// glibc's `strsignal`.
fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "Hangup",
        2 => "Interrupt",
        3 => "Quit",
        4 => "Illegal instruction",
        5 => "Trace/breakpoint trap",
        6 => "Aborted",
        7 => "Bus error",
        8 => "Floating point exception",
        9 => "Killed",
        10 => "User defined signal 1",
        11 => "Segmentation fault",
        12 => "User defined signal 2",
        13 => "Broken pipe",
        14 => "Alarm clock",
        15 => "Terminated",
        _ => return format!("Signal {signal}"),
    };
    name.to_owned()
}
