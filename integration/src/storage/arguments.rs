//! Command lines of the form `--name value` and `--switch`, for the two programs of this folder.
//!
//! Deliberately not a parser for people: the callers are scripts and tests, and a mistake ends the program with a sentence.

use std::collections::BTreeMap;

/// What is wrong with a command line.
#[derive(Debug, thiserror::Error)]
pub enum ArgumentError {
    /// A name that the program does not know.
    #[error("argument {argument} is unknown; known are {known}")]
    Unknown {
        /// As it was given.
        argument: String,
        /// What could have been given.
        known: String,
    },
    /// A name without its value.
    #[error("argument --{name} needs a value")]
    WithoutValue {
        /// The name, without dashes.
        name: String,
    },
    /// A required name that is missing.
    #[error("argument --{name} is missing")]
    Missing {
        /// The name, without dashes.
        name: String,
    },
}

/// The arguments of one command line.
#[derive(Debug)]
pub struct Arguments {
    values: BTreeMap<String, String>,
    switches: Vec<String>,
}

impl Arguments {
    /// Reads `words` (without the program's name); `names` take a value, `switches` do not.
    ///
    /// # Errors
    /// An unknown name, or a name without its value.
    pub fn parse(
        words: impl IntoIterator<Item = String>,
        names: &[&str],
        switches: &[&str],
    ) -> Result<Self, ArgumentError> {
        let mut parsed = Self { values: BTreeMap::new(), switches: Vec::new() };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            match word.strip_prefix("--") {
                Some(name) if switches.contains(&name) => parsed.switches.push(name.to_owned()),
                Some(name) if names.contains(&name) => {
                    let value =
                        words.next().ok_or_else(|| ArgumentError::WithoutValue { name: name.to_owned() })?;
                    parsed.values.insert(name.to_owned(), value);
                }
                _ => {
                    let known: Vec<_> =
                        names.iter().chain(switches).map(|name| format!("--{name}")).collect();
                    return Err(ArgumentError::Unknown { argument: word, known: known.join(", ") });
                }
            }
        }
        Ok(parsed)
    }

    /// The value of a name that must be there.
    ///
    /// # Errors
    /// The name was not given.
    pub fn required(&self, name: &str) -> Result<&str, ArgumentError> {
        self.optional(name).ok_or_else(|| ArgumentError::Missing { name: name.to_owned() })
    }

    /// The value of a name that may be left out.
    #[must_use]
    pub fn optional(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// Whether a switch was given.
    #[must_use]
    pub fn switch(&self, name: &str) -> bool {
        self.switches.iter().any(|given| given == name)
    }
}

#[cfg(test)]
mod tests {
    use super::{ArgumentError, Arguments};

    fn parse(line: &str) -> Result<Arguments, ArgumentError> {
        Arguments::parse(line.split_whitespace().map(str::to_owned), &["dir", "listen"], &["preempt"])
    }

    #[test]
    fn values_and_switches_are_found() {
        let arguments = parse("--dir /d --preempt").unwrap();
        assert_eq!(arguments.required("dir").unwrap(), "/d");
        assert!(arguments.switch("preempt"));
        assert_eq!(arguments.optional("listen"), None);
    }

    #[test]
    fn a_mistake_is_told_by_name() {
        for (line, sentence) in [
            ("--dri /d", "argument --dri is unknown; known are --dir, --listen, --preempt"),
            ("--dir", "argument --dir needs a value"),
            ("dir", "argument dir is unknown; known are --dir, --listen, --preempt"),
        ] {
            assert_eq!(parse(line).unwrap_err().to_string(), sentence);
        }
        assert_eq!(parse("").unwrap().required("dir").unwrap_err().to_string(), "argument --dir is missing");
    }
}
