//! A cluster to play with: real Mesos, etcd and hosts that can be killed, on this machine.

use std::error::Error;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use integration::cluster::session::{ask, hold, holder_log, with_causes};
use integration::cluster::{ClusterConfig, Parameters};

const USAGE: &str = "\
usage: extvol-cluster up [OPTION...]     start a cluster and leave it up
         --agents N                      agent hosts (default 2)
         --etcd N                        etcd members, 1 or 3 (default 1)
         --standby                       a second master, which follows
         --images DIR                    Docker image archives, DIR/NAME.tar
         --driver NAME                   storage and, on each agent host, its plugin NAME; may be repeated
         --modules                       load libextvol.so into master and agents
         --master-parameter KEY=VALUE    of the master's module; may be repeated
         --agent-parameter KEY=VALUE     of the agents' isolator; may be repeated
                                         values may hold {etcd}, {host}, {address}, {hub}, {cluster}, {dir}
       extvol-cluster describe           how to play with it
       extvol-cluster down               end it
       extvol-cluster exec HOST PROGRAM [ARGUMENT...]
       extvol-cluster kill|start HOST SERVICE
       extvol-cluster kill-host|start-host HOST
       extvol-cluster cable HOST out|in";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["up", ref options @ ..] => up(options),
        ["hold", ref options @ ..] => configure(options).and_then(|config| {
            hold(config)?;
            Ok(ExitCode::SUCCESS)
        }),
        ["exec", host, program, ref arguments @ ..] => exec(host, program, arguments),
        ["describe" | "down"] | ["kill-host" | "start-host", _] | ["kill" | "start" | "cable", _, _] => {
            tell(&words)
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("extvol-cluster: {}", with_causes(error.as_ref()));
        ExitCode::FAILURE
    })
}

type Outcome = Result<ExitCode, Box<dyn Error>>;

fn tell(words: &[&str]) -> Outcome {
    let answer = ask(words)?;
    println!("{}", if answer.is_empty() { "done" } else { answer.trim_end() });
    Ok(ExitCode::SUCCESS)
}

/// Starts the holder in a session of its own and waits until it answers or ends.
fn up(options: &[&str]) -> Outcome {
    // What is wrong with the options or missing is said here, not in the holder's log.
    configure(options)?;
    if ask(&["describe"]).is_ok() {
        return Err("a cluster is up already; `extvol-cluster down` ends it".into());
    }
    let log = holder_log();
    fs::create_dir_all(log.parent().unwrap_or(&log))?;
    let file = File::create(&log)?;
    let mut holder = Command::new("setsid")
        .arg(std::env::current_exe()?)
        .arg("hold")
        .args(options)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()?;
    loop {
        if let Ok(description) = ask(&["describe"]) {
            print!("{description}");
            return Ok(ExitCode::SUCCESS);
        }
        if holder.try_wait()?.is_some() {
            let said: Vec<_> = BufReader::new(File::open(&log)?).lines().collect::<Result<_, _>>()?;
            return Err(format!("the cluster did not start\n{}", said.join("\n")).into());
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Becomes `nsenter`, so that terminals, pipes and exit codes are the program's own.
fn exec(host: &str, program: &str, arguments: &[&str]) -> Outcome {
    let init = ask(&["init", host])?;
    let failed = Command::new("nsenter")
        .args(["--target", &init, "--mount", "--uts", "--ipc", "--net", "--pid", "--"])
        .arg(program)
        .args(arguments)
        .exec();
    Err(failed.into())
}

fn configure(options: &[&str]) -> Result<ClusterConfig, Box<dyn Error>> {
    let mut config = ClusterConfig::plain(2)?;
    let (mut modules, mut of_master, mut of_agent) = (false, Parameters::new(), Parameters::new());
    let mut drivers = Vec::new();
    let mut options = options.iter().copied();
    while let Some(option) = options.next() {
        let mut value = || options.next().ok_or_else(|| format!("{option} needs a value\n{USAGE}"));
        match option {
            "--agents" => config.agents = number(option, value()?, 1..=200)?,
            "--etcd" => config.etcd_members = number(option, value()?, 1..=3)?,
            "--standby" => config.standby_master = true,
            "--images" => config.docker_registry = Some(fs::canonicalize(value()?)?),
            "--driver" => drivers.push(value()?),
            "--modules" => modules = true,
            "--master-parameter" => of_master.push(parameter(value()?)?),
            "--agent-parameter" => of_agent.push(parameter(value()?)?),
            _ => return Err(format!("unknown option {option}\n{USAGE}").into()),
        }
    }
    if modules {
        config.load_modules(of_master, of_agent)?;
    } else if !(of_master.is_empty() && of_agent.is_empty()) {
        return Err("module parameters without --modules".into());
    }
    if !drivers.is_empty() {
        config.add_storage(&drivers)?;
        config.serve(&drivers);
    }
    Ok(config)
}

fn number(option: &str, value: &str, allowed: std::ops::RangeInclusive<u8>) -> Result<u8, Box<dyn Error>> {
    let number = value.parse().ok().filter(|number| allowed.contains(number));
    number.ok_or_else(|| format!("{option} takes a number of {allowed:?}, not {value:?}").into())
}

fn parameter(text: &str) -> Result<(String, String), Box<dyn Error>> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is no KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}
