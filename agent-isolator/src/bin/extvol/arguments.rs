//! The command line.

use shared::volume::{Driver, Holder, VolumeId, VolumeName};

pub(crate) const USAGE: &str = "\
usage: extvol [OPTION ...] COMMAND

commands
  leases [--all]                 who holds which volume; --all shows free ones too
  volumes [DRIVER]               the volumes that the plugins of this host's drivers list, or that of one, and who
                                 holds them
  sessions                       the hosts, and how their sessions stand
  events [--limit N] [--follow]  what happened, oldest first; the newest N; and goes on
  revoke VOLUME|HOLDER --yes     make a host give up one volume, or all; its tasks that use them are ended
  free VOLUME --detached HOLDER  free a lease of a host that is lost, once you have detached the volume from it yourself
  storm [lift]                   the storm guard: shows it; lifts it
  doctor [--agent] [--plugins P,...]
                                 checks etcd, the installation and this host; --agent checks this host as an
                                 agent's even though no keeper was ever started on it;
                                 --plugins asks these too

VOLUME is driver/name, as in ebs/vol-7bca078f; HOLDER is a host as `extvol sessions` names it.

options
  --endpoints LIST    etcd's members, host:port,...; the parameter etcd_endpoints
  --prefix PREFIX     where the records are; the parameter etcd_prefix, default /extvol/v1
  --NAME=VALUE        any other parameter of the keeper; README.md lists them
  --config FILE       parameters: the keeper's JSON object, or a modules JSON of an agent or a master
  -o table|json       what `leases`, `volumes`, `sessions`, `events`, `storm` and `doctor` print
  -h, --help          this text

Without endpoints and --config the parameters are those of the keeper that runs on this host, or else
those in /etc/extvol/keeper.json. The environment is not read.

exit code: 0 done, 1 refused, failed or not well, 2 usage, 3 etcd out of reach
";

/// What to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Table,
    Json,
}

/// What is revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Volume(VolumeId),
    Holder(Holder),
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Leases { all: bool },
    Volumes { driver: Option<Driver> },
    Sessions,
    Events { follow: bool, limit: Option<usize> },
    Revoke { subject: Subject, yes: bool },
    Free { volume: VolumeId, detached_from: Option<Holder> },
    Storm { lift: bool },
    Doctor { agent: bool, plugins: Vec<Driver> },
}

/// The command line, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub(crate) action: Action,
    pub(crate) output: Output,
    /// `--config`.
    pub(crate) config: Option<String>,
    /// Parameters, by their own names.
    pub(crate) parameters: Vec<(String, String)>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Help,
    Run(Arguments),
}

/// Flags that belong to a command, with whether they take a value.
const FLAGS: [(&str, &str, bool); 7] = [
    ("leases", "--all", false),
    ("events", "--follow", false),
    ("events", "--limit", true),
    ("revoke", "--yes", false),
    ("free", "--detached", true),
    ("doctor", "--agent", false),
    ("doctor", "--plugins", true),
];

/// Options of every command: their name, the parameter that they are, and whether they are its name.
const PARAMETERS: [(&str, &str); 2] = [("--endpoints", "etcd_endpoints"), ("--prefix", "etcd_prefix")];

/// Reads the command line.
///
/// # Errors
/// A sentence that names what is wrong.
pub(crate) fn parse(given: impl Iterator<Item = String>) -> Result<Command, String> {
    let mut words: Vec<String> = Vec::new();
    let mut flags: Vec<(&'static str, &'static str, String)> = Vec::new();
    let (mut output, mut config, mut parameters) = (Output::Table, None, Vec::new());
    let mut given = given;
    while let Some(argument) = given.next() {
        if matches!(argument.as_str(), "-h" | "--help") {
            return Ok(Command::Help);
        }
        let (name, inline) = match argument.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name.to_owned(), Some(value.to_owned())),
            _ => (argument.clone(), None),
        };
        let mut value = |inline: Option<String>| {
            inline.or_else(|| given.next()).ok_or_else(|| format!("{name} needs a value"))
        };
        if let Some((_, parameter)) = PARAMETERS.iter().find(|(option, _)| *option == name) {
            parameters.push(((*parameter).to_owned(), value(inline)?));
        } else if name == "--config" {
            config = Some(value(inline)?);
        } else if matches!(name.as_str(), "-o" | "--output") {
            output = match value(inline)?.as_str() {
                "table" => Output::Table,
                "json" => Output::Json,
                other => return Err(format!("-o is {other:?}; it is table or json")),
            };
        } else if let Some((command, flag, takes)) = FLAGS.iter().find(|(_, flag, _)| *flag == name) {
            let value = match (takes, inline) {
                (true, inline) => value(inline)?,
                (false, None) => String::new(),
                (false, Some(_)) => return Err(format!("{flag} takes no value")),
            };
            flags.push((command, flag, value));
        } else if let (Some(parameter), Some(value)) = (name.strip_prefix("--"), inline) {
            parameters.push((parameter.to_owned(), value));
        } else if argument.starts_with('-') {
            return Err(format!("the option {argument} is not known; `extvol --help` lists all"));
        } else {
            words.push(argument);
        }
    }
    let action = action(&words, &flags)?;
    Ok(Command::Run(Arguments { action, output, config, parameters }))
}

fn action(words: &[String], flags: &[(&'static str, &'static str, String)]) -> Result<Action, String> {
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let Some((command, operands)) = words.split_first() else {
        return Err(format!("which command?\n\n{USAGE}"));
    };
    if let Some((of, flag, _)) = flags.iter().find(|(of, ..)| of != command) {
        return Err(format!("{flag} is an option of `extvol {of}`, not of `extvol {command}`"));
    }
    let value = |wanted: &str| flags.iter().find(|(_, flag, _)| *flag == wanted).map(|(.., value)| value);
    let has = |wanted: &str| value(wanted).is_some();
    match (*command, operands) {
        ("leases", []) => Ok(Action::Leases { all: has("--all") }),
        ("volumes", []) => Ok(Action::Volumes { driver: None }),
        ("volumes", [driver]) => {
            let driver = Driver::new(*driver).map_err(|why| format!("the driver {driver:?} {why}"))?;
            Ok(Action::Volumes { driver: Some(driver) })
        }
        ("sessions", []) => Ok(Action::Sessions),
        ("events", []) => {
            let limit = value("--limit").map(|text| match text.parse() {
                Ok(limit) if limit > 0 => Ok(limit),
                _ => Err(format!("--limit is {text:?}, which is not a whole number above 0")),
            });
            Ok(Action::Events { follow: has("--follow"), limit: limit.transpose()? })
        }
        ("revoke", [subject]) => Ok(Action::Revoke { subject: parse_subject(subject)?, yes: has("--yes") }),
        ("free", [volume]) => {
            let from = value("--detached").map(|name| {
                Holder::new(name).map_err(|why| format!("--detached names the host {name:?}, which {why}"))
            });
            Ok(Action::Free { volume: parse_volume(volume)?, detached_from: from.transpose()? })
        }
        ("storm", []) => Ok(Action::Storm { lift: false }),
        ("storm", ["lift"]) => Ok(Action::Storm { lift: true }),
        ("doctor", []) => {
            let named = value("--plugins").map(String::as_str).unwrap_or_default();
            let driver = |name: &str| {
                Driver::new(name).map_err(|why| format!("--plugins names {name:?}, which {why}"))
            };
            let plugins = named.split(',').filter(|name| !name.is_empty()).map(driver);
            Ok(Action::Doctor { agent: has("--agent"), plugins: plugins.collect::<Result<_, _>>()? })
        }
        ("revoke", []) => Err("`extvol revoke` needs a volume (driver/name) or a holder".to_owned()),
        ("free", []) => Err("`extvol free` needs a volume (driver/name)".to_owned()),
        (
            "leases" | "volumes" | "sessions" | "events" | "revoke" | "free" | "storm" | "doctor",
            [.., last],
        ) => Err(format!("`extvol {command}` does not understand {last:?}; see `extvol --help`")),
        (other, _) => Err(format!("there is no command {other:?}; see `extvol --help`")),
    }
}

fn parse_subject(text: &str) -> Result<Subject, String> {
    // No holder's name has a slash, and each volume's full name has one.
    if text.contains('/') {
        return parse_volume(text).map(Subject::Volume);
    }
    Holder::new(text).map(Subject::Holder).map_err(|why| format!("the holder {text:?} {why}"))
}

fn parse_volume(text: &str) -> Result<VolumeId, String> {
    // The names under which volumes are leased: a driver's has no slash, a volume's may have some.
    let (driver, name) = text
        .split_once('/')
        .ok_or_else(|| format!("{text:?} is no volume: it is named driver/name, as in ebs/vol-7bca078f"))?;
    let driver = Driver::new(driver).map_err(|why| format!("the driver of {text:?} {why}"))?;
    let name = VolumeName::new(name).map_err(|why| format!("the volume of {text:?} {why}"))?;
    Ok(VolumeId { driver, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Arguments, String> {
        match parse(line.split_whitespace().map(str::to_owned))? {
            Command::Help => Err("help".to_owned()),
            Command::Run(arguments) => Ok(arguments),
        }
    }

    fn action_of(line: &str) -> Action {
        parsed(line).unwrap().action
    }

    #[test]
    fn every_command_is_understood_with_options_before_and_after_it() {
        assert_eq!(action_of("leases"), Action::Leases { all: false });
        assert_eq!(action_of("--all leases"), Action::Leases { all: true });
        assert_eq!(action_of("volumes"), Action::Volumes { driver: None });
        assert_eq!(action_of("volumes ebs"), Action::Volumes { driver: Some(Driver::new("ebs").unwrap()) });
        assert_eq!(action_of("events --follow --limit 5"), Action::Events { follow: true, limit: Some(5) });
        assert_eq!(action_of("events --limit=5"), Action::Events { follow: false, limit: Some(5) });
        let volume = parse_volume("ebs/vol-7b").unwrap();
        let subject = Subject::Volume(volume.clone());
        assert_eq!(action_of("revoke ebs/vol-7b"), Action::Revoke { subject, yes: false });
        let subject = Subject::Holder(Holder::new("agent-1.example").unwrap());
        assert_eq!(action_of("revoke agent-1.example --yes"), Action::Revoke { subject, yes: true });
        assert_eq!(
            action_of("free ebs/vol-7b --detached a"),
            Action::Free { volume, detached_from: Some(Holder::new("a").unwrap()) }
        );
        assert_eq!(action_of("storm lift"), Action::Storm { lift: true });
        let plugins = vec![Driver::new("ebs").unwrap(), Driver::new("scaleio").unwrap()];
        assert_eq!(action_of("doctor --plugins ebs,scaleio"), Action::Doctor { agent: false, plugins });
        let arguments = parsed("-o json --endpoints h:1 sessions --prefix=/x --holder=a --config f").unwrap();
        assert_eq!((arguments.output, arguments.config.as_deref()), (Output::Json, Some("f")));
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let pairs = [pair("etcd_endpoints", "h:1"), pair("etcd_prefix", "/x"), pair("holder", "a")];
        assert_eq!(arguments.parameters, pairs);
        assert!(matches!(parse(["-h".to_owned()].into_iter()), Ok(Command::Help)));
    }

    #[test]
    fn a_volumes_name_is_what_follows_the_first_slash() {
        let volume = parse_volume("rbd/pool/image").unwrap();
        assert_eq!((volume.driver.as_str(), volume.name.as_str()), ("rbd", "pool/image"));
    }

    #[test]
    fn what_is_wrong_is_refused_by_name_and_value() {
        for (line, expected) in [
            ("", "which command?"),
            ("lease", "no command \"lease\""),
            ("leases now", "`extvol leases` does not understand \"now\""),
            ("volumes ebs nfs", "`extvol volumes` does not understand \"nfs\""),
            ("volumes a\\b", "the driver \"a\\\\b\" "),
            ("leases --follow", "--follow is an option of `extvol events`, not of `extvol leases`"),
            ("events --limit 0", "--limit is \"0\""),
            ("events --limit", "--limit needs a value"),
            ("events --follow=yes", "--follow takes no value"),
            ("revoke", "needs a volume"),
            ("revoke ebs/..", "the volume of \"ebs/..\" must not be"),
            ("revoke a b", "does not understand \"b\""),
            ("free ebs/v --detached", "--detached needs a value"),
            ("free ebs/v --detached a/b", "--detached names the host \"a/b\""),
            ("free agent-1", "\"agent-1\" is no volume"),
            ("-o yaml leases", "-o is \"yaml\"; it is table or json"),
            ("--loud leases", "the option --loud is not known"),
            ("doctor --plugins a\\b", "--plugins names \"a\\\\b\", which"),
        ] {
            let error = parsed(line).unwrap_err();
            assert!(error.contains(expected), "{line:?}: {error}");
        }
    }
}
