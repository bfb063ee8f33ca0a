//! What a demonstration prints: short lines for a person, each with the time since the beginning, and a verdict.

use std::fmt::Display;
use std::time::Instant;

/// The clock of a demonstration.
#[derive(Debug)]
pub struct Timeline {
    began: Instant,
}

impl Timeline {
    /// Begins now.
    #[must_use]
    pub fn begin() -> Self {
        Self { began: Instant::now() }
    }

    /// Something that happens, or was seen.
    pub fn line(&self, text: impl Display) {
        println!("{:6.1} s  {text}", self.seconds());
    }

    /// More about the last line.
    pub fn more(&self, text: impl Display) {
        for line in text.to_string().lines() {
            println!("          {line}");
        }
    }

    /// The command that anybody could type, and what it printed.
    pub fn command(&self, command: impl Display, output: impl Display) {
        self.more(format_args!("$ {command}"));
        self.more(output);
    }

    /// A new part.
    pub fn part(&self, title: impl Display) {
        println!("\n{title}");
    }

    /// Seconds since the beginning.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }
}
