//! Docker volume plugins.
//!
//! ```text
//! mod.rs        calling them: the one file that speaks their protocol
//! call.rs       one call over one connection; tls.rs: whom to believe there
//! answer.rs     what their answers mean
//! discovery.rs  finding them; endpoint.rs: where they listen, and which of them must not be one
//! specification.rs, managed.rs, files.rs    the files that say where they listen
//! ```
//!
//! What a plugin answers is no proof of anything (see `mounts`): a Mount's error tells only whether
//! the plugin is done with the call, and an Unmount's answer is for the log.

pub(crate) mod answer;
mod call;
mod discovery;
pub(crate) mod endpoint;
mod files;
pub(crate) mod managed;
pub(crate) mod specification;
pub(crate) mod tls;
#[cfg(test)]
mod tls_tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use serde_json::{Value, json};
use shared::protocol::holder::{MountFault, UnmountFault};
use shared::record::Token;
use shared::volume::{Driver, VolumeId};
use tokio::sync::Semaphore;

use self::answer::{Said, field, says_missing, understood, words};
use self::call::Fault;
use self::discovery::Discovery;
use self::endpoint::Endpoint;
use super::blocking;
use crate::parameters::Drivers;

/// Docker waits this long for Create and Mount; attaching a cloud volume takes most of a minute.
pub const MOUNT_TIMEOUT: Duration = Duration::from_secs(120);
/// Docker waits this long for everything else.
pub const UNMOUNT_TIMEOUT: Duration = Duration::from_secs(60);

/// An error that comes later than this need not mean an end: RexRay's server answers one after 60 s
/// while the attach or detach goes on.
const PROMPT: Duration = Duration::from_secs(30);

/// An answer longer than this is no plugin's.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// So many threads look at once at the files that say where plugins listen. Where their file system does not answer, no more of
/// them hang, and others have theirs.
const LOOKS_MAX: usize = 4;

/// A look reads a few files.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// Of all its volumes, which may be thousands with all that the plugin knows of each.
const LIST_BYTES_MAX: usize = 16 << 20;

/// Why a plugin's call gave no good answer.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// No plugin of that name is installed.
    #[error("no Docker volume plugin named {driver} was found (looked for {looked_for})")]
    NotFound {
        /// The name.
        driver: Driver,
        /// The files that would name it.
        looked_for: String,
    },
    /// It listens where another plugin does that is no other name of it: whose storage is behind both cannot be told, and
    /// neither is called.
    #[error(
        "the plugin {driver} at {endpoint} is the plugin {other} as well, and neither is an alias of the other in `drivers`"
    )]
    Coincides {
        /// The name.
        driver: Driver,
        /// The other.
        other: Driver,
        /// Where both listen.
        endpoint: String,
    },
    /// The file that tells where the plugin listens says nothing usable.
    #[error("{} does not say where the plugin listens: {fault}", file.display())]
    Specification {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        fault: String,
    },
    /// The files that would tell do not answer.
    #[error(
        "where the plugin {driver} listens could not be seen within {} s: the file system of its files does not answer",
        LOOK_TIMEOUT.as_secs()
    )]
    Unseen {
        /// Its name.
        driver: Driver,
    },
    /// The plugin could not be reached: it did not get the call.
    #[error("the plugin {driver} at {endpoint} could not be reached")]
    Unreachable {
        /// Its name.
        driver: Driver,
        /// Where it should listen.
        endpoint: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The plugin got the call, and gave no answer that means anything: it may still be at it.
    #[error("the plugin {driver} gave no proper answer to {call}: {fault}")]
    NoAnswer {
        /// Its name.
        driver: Driver,
        /// The call.
        call: &'static str,
        /// What it did instead.
        fault: String,
    },
    /// The plugin answered with an error.
    #[error("the plugin {driver} refused {call}: {text}")]
    Refused {
        /// Its name.
        driver: Driver,
        /// The call.
        call: &'static str,
        /// Its words.
        text: String,
    },
}

impl DriverError {
    /// The error and its causes, as one sentence for a person.
    fn sentence(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}

/// A volume, as a plugin lists it. Foreign words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// What the plugin calls it.
    pub name: String,
    /// Where it has it mounted on its host, as the plugin sees that host; empty if nowhere.
    pub mountpoint: String,
}

/// A volume driver: what the keeper needs of it.
pub trait VolumeDriver {
    /// Makes the volume, if it is to be made when missing, and mounts it on this host; answers where.
    fn mount(
        &self,
        asked: &VolumeId,
        create: Option<&BTreeMap<String, String>>,
        token: Token,
    ) -> impl Future<Output = Result<String, MountFault>> + Send;

    /// Has the storage take the volume away from every other host, by mounting it here with preemption. Only with a
    /// proof that its last holder is dead.
    fn take_away(
        &self,
        asked: &VolumeId,
        token: Token,
    ) -> impl Future<Output = Result<(), MountFault>> + Send;

    /// Unmounts it.
    fn unmount(
        &self,
        asked: &VolumeId,
        token: Token,
    ) -> impl Future<Output = Result<(), UnmountFault>> + Send;

    /// Removes it, and all that is in it.
    fn remove(&self, asked: &VolumeId) -> impl Future<Output = Result<(), UnmountFault>> + Send;
}

/// Docker volume plugins, as they are installed on this host.
#[derive(Clone, Debug)]
pub struct DockerPlugins {
    discovery: Discovery,
    drivers: Drivers,
    looks: Arc<Semaphore>,
}

/// What was seen of a plugin for one call.
#[derive(Debug)]
struct Found {
    endpoint: Endpoint,
    /// Of one behind TLS, or why there is none.
    tls: Option<Result<ClientConfig, String>>,
}

impl DockerPlugins {
    /// As they are found on this host.
    #[must_use]
    pub fn new(drivers: &Drivers) -> Self {
        let looks = Arc::new(Semaphore::new(LOOKS_MAX));
        Self { discovery: Discovery::new(drivers), drivers: drivers.clone(), looks }
    }

    fn mount_timeout(&self, driver: &Driver) -> Duration {
        self.drivers.of(driver).mount_timeout.unwrap_or(MOUNT_TIMEOUT)
    }

    fn unmount_timeout(&self, driver: &Driver) -> Duration {
        self.drivers.of(driver).unmount_timeout.unwrap_or(UNMOUNT_TIMEOUT)
    }

    /// Whether a plugin of that name answers, and says that it is a volume driver. Changes nothing.
    ///
    /// # Errors
    /// See [`DriverError`].
    pub async fn activate(&self, driver: &Driver, timeout: Duration) -> Result<(), DriverError> {
        let answer = self.post(driver, "Plugin", "Activate", &json!({}), timeout).await?;
        let implements = field(&answer, "Implements").and_then(Value::as_array);
        if implements.is_some_and(|all| all.iter().any(|one| one == "VolumeDriver")) {
            return Ok(());
        }
        let fault = format!("{:?} does not implement VolumeDriver", words(answer.to_string().as_bytes()));
        Err(DriverError::NoAnswer { driver: driver.clone(), call: "Activate", fault })
    }

    /// The scope of a plugin's volumes: `global`, or `local` also for a plugin that knows no Capabilities, as Docker takes
    /// it. Changes nothing.
    ///
    /// # Errors
    /// See [`DriverError`].
    pub async fn scope(&self, driver: &Driver, timeout: Duration) -> Result<String, DriverError> {
        match self.call(driver, "Capabilities", &json!({}), timeout).await {
            Ok(answer) => {
                let scope = answer.pointer("/Capabilities/Scope").and_then(Value::as_str);
                Ok(words(scope.filter(|scope| !scope.is_empty()).unwrap_or("local").as_bytes()))
            }
            Err(DriverError::Refused { .. }) => Ok("local".into()),
            Err(error) => Err(error),
        }
    }

    /// All volumes that a plugin knows. Changes nothing.
    ///
    /// # Errors
    /// See [`DriverError`].
    pub async fn list(&self, driver: &Driver, timeout: Duration) -> Result<Vec<Listed>, DriverError> {
        let answer = self.call(driver, "List", &json!({}), timeout).await?;
        let no_list = || DriverError::NoAnswer {
            driver: driver.clone(),
            call: "List",
            fault: format!("{:?} is no list of volumes", words(answer.to_string().as_bytes())),
        };
        let text = |volume: &Value, name: &str| {
            field(volume, name).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        match field(&answer, "Volumes") {
            // Go writes no volumes as null, or not at all.
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(volumes)) if volumes.iter().all(Value::is_object) => Ok(volumes
                .iter()
                .map(|volume| Listed { name: text(volume, "Name"), mountpoint: text(volume, "Mountpoint") })
                .collect()),
            Some(_) => Err(no_list()),
        }
    }

    /// Where a plugin listens. Files are looked at, for which no thread is held up that others wait for.
    async fn found(&self, driver: &Driver) -> Result<Found, DriverError> {
        let (discovery, name, looks) = (self.discovery.clone(), driver.clone(), Arc::clone(&self.looks));
        let looking = async move {
            // Nobody closes it.
            let turn = looks.acquire_owned().await.ok();
            let look = move || {
                let _turn = turn;
                let endpoint = discovery.find(&name)?;
                let tls = match &endpoint {
                    Endpoint::Tls(_, tls) => Some(tls.for_connection()),
                    _ => None,
                };
                Ok(Found { endpoint, tls })
            };
            blocking(look).await
        };
        let looked = tokio::time::timeout(LOOK_TIMEOUT, looking).await;
        looked.unwrap_or_else(|_| Err(DriverError::Unseen { driver: driver.clone() }))
    }

    async fn call(
        &self,
        driver: &Driver,
        call: &'static str,
        body: &Value,
        timeout: Duration,
    ) -> Result<Value, DriverError> {
        self.post(driver, "VolumeDriver", call, body, timeout).await
    }

    async fn post(
        &self,
        driver: &Driver,
        interface: &'static str,
        call: &'static str,
        body: &Value,
        timeout: Duration,
    ) -> Result<Value, DriverError> {
        self.post_to(self.found(driver).await?, driver, interface, call, body, timeout).await
    }

    async fn post_to(
        &self,
        Found { endpoint, tls }: Found,
        driver: &Driver,
        interface: &'static str,
        call: &'static str,
        body: &Value,
        timeout: Duration,
    ) -> Result<Value, DriverError> {
        let no_answer = |fault: String| DriverError::NoAnswer { driver: driver.clone(), call, fault };
        let most = if call == "List" { LIST_BYTES_MAX } else { ANSWER_BYTES_MAX };
        let method = format!("{interface}.{call}");
        let answer = call::call(&endpoint, tls, &method, body.to_string(), timeout, most).await;
        let answer = answer.map_err(|fault| match fault {
            Fault::Unreachable(source) => {
                DriverError::Unreachable { driver: driver.clone(), endpoint: endpoint.shown(), source }
            }
            Fault::Nothing(fault) => no_answer(fault),
        })?;
        understood(&answer.body, answer.status, answer.after < PROMPT).map_err(|said| match said {
            Said::No(text) => DriverError::Refused { driver: driver.clone(), call, text },
            Said::Nothing(fault) => no_answer(fault),
        })
    }

    /// Whether a volume exists.
    ///
    /// # Errors
    /// When that cannot be told.
    async fn exists(&self, asked: &VolumeId) -> Result<bool, DriverError> {
        let name = json!({ "Name": asked.name });
        let timeout = self.unmount_timeout(&asked.driver);
        let unknown = match self.call(&asked.driver, "Get", &name, timeout).await {
            // A missing one is answered with `{}`, or an empty volume, by some.
            Ok(answer) => {
                let volume = field(&answer, "Volume");
                let named = volume.and_then(|volume| field(volume, "Name")).and_then(Value::as_str);
                return Ok(named.is_some_and(|name| !name.is_empty()));
            }
            Err(DriverError::Refused { text, .. }) if says_missing(&text) => return Ok(false),
            // Out of reach, out of rights, or without that call.
            Err(refused @ DriverError::Refused { .. }) => refused,
            Err(other) => return Err(other),
        };
        let Ok(answer) = self.call(&asked.driver, "List", &json!({}), timeout).await else {
            return Err(unknown);
        };
        let Some(volumes) = field(&answer, "Volumes") else { return Err(unknown) };
        // Go writes no volumes as null.
        let mut volumes = volumes.as_array().into_iter().flatten();
        let is_it = |volume: &Value| {
            let name = field(volume, "Name").and_then(Value::as_str);
            name.is_some_and(|name| name.eq_ignore_ascii_case(asked.name.as_str()))
        };
        Ok(volumes.any(is_it))
    }

    async fn ensure_exists(
        &self,
        asked: &VolumeId,
        options: &BTreeMap<String, String>,
    ) -> Result<(), DriverError> {
        // Some drivers' Create of an existing volume fails, or resizes it, or makes a second one of that name. Only a plain no
        // means that it does not exist.
        if self.exists(asked).await? {
            return Ok(());
        }
        let body = json!({ "Name": asked.name, "Opts": options });
        self.call(&asked.driver, "Create", &body, self.mount_timeout(&asked.driver)).await.map(drop)
    }
}

/// What the plugin tells apart mounts by; RexRay ignores it.
fn mount_id(token: Token) -> String {
    format!("extvol-{token}")
}

fn mount_fault(error: DriverError) -> MountFault {
    let why = error.sentence().into();
    match error {
        DriverError::NoAnswer { .. } => MountFault::Unresolved(why),
        DriverError::Refused { .. } => MountFault::Refused(why),
        DriverError::NotFound { .. }
        | DriverError::Coincides { .. }
        | DriverError::Specification { .. }
        | DriverError::Unseen { .. }
        | DriverError::Unreachable { .. } => MountFault::Unreachable(why),
    }
}

fn unmount_fault(error: DriverError) -> UnmountFault {
    let why = error.sentence().into();
    match error {
        DriverError::NoAnswer { .. } => UnmountFault::Unresolved(why),
        DriverError::Refused { .. } => UnmountFault::Refused(why),
        DriverError::NotFound { .. }
        | DriverError::Coincides { .. }
        | DriverError::Specification { .. }
        | DriverError::Unseen { .. }
        | DriverError::Unreachable { .. } => UnmountFault::Unreachable(why),
    }
}

impl VolumeDriver for DockerPlugins {
    async fn mount(
        &self,
        asked: &VolumeId,
        create: Option<&BTreeMap<String, String>>,
        token: Token,
    ) -> Result<String, MountFault> {
        if let Some(options) = create {
            let made = self.ensure_exists(asked, options).await;
            made.map_err(|error| match &error {
                // A Create without an answer may still make the volume: whoever looked for it before would make a second
                // one of that name. Get and List leave nothing to be settled.
                DriverError::NoAnswer { call, .. } if *call != "Create" => {
                    MountFault::Refused(error.sentence().into())
                }
                _ => mount_fault(error),
            })?;
        }
        let body = json!({ "Name": asked.name, "ID": mount_id(token) });
        let found = self.found(&asked.driver).await.map_err(mount_fault)?;
        let endpoint = found.endpoint.clone();
        let timeout = self.mount_timeout(&asked.driver);
        let answer = self.post_to(found, &asked.driver, "VolumeDriver", "Mount", &body, timeout).await;
        let answer = answer.map_err(mount_fault)?;
        match field(&answer, "Mountpoint").and_then(Value::as_str) {
            Some(path) if !path.is_empty() => endpoint.host_path(path.to_owned()).map_err(|why| {
                let why = format!("the plugin {} has mounted the volume at {path:?}: {why}", asked.driver);
                MountFault::Unusable { why: why.into(), mounted: None }
            }),
            // It is done, and the volume is mounted nowhere that anybody knows of.
            _ => {
                let why = format!("the plugin {} answered Mount without a Mountpoint", asked.driver);
                Err(MountFault::Unusable { why: why.into(), mounted: None })
            }
        }
    }

    async fn take_away(&self, asked: &VolumeId, token: Token) -> Result<(), MountFault> {
        let Some(plugin) = self.drivers.preempt.get(self.drivers.naming.driver(&asked.driver)) else {
            let why = format!("no plugin is known that takes volumes of {} away", asked.driver);
            return Err(MountFault::Unreachable(why.into()));
        };
        let timeout = self.unmount_timeout(&asked.driver);
        // Under a second name it would be taken from whoever lives and holds it under the first.
        if let Ok(answer) = self.call(plugin, "Get", &json!({ "Name": asked.name }), timeout).await
            && let Some(name) = field(&answer, "Volume").and_then(|volume| field(volume, "Name"))
            && let Some(name) = name.as_str().filter(|name| !name.is_empty())
            && !name.eq_ignore_ascii_case(asked.name.as_str())
        {
            let why = format!(
                "the driver knows the volume {} as {}: name it so",
                asked.name,
                words(name.as_bytes())
            );
            return Err(MountFault::Unreachable(why.into()));
        }
        let body = json!({ "Name": asked.name, "ID": mount_id(token) });
        let answer = self.call(plugin, "Mount", &body, self.mount_timeout(&asked.driver)).await;
        answer.map(drop).map_err(mount_fault)
    }

    async fn unmount(&self, asked: &VolumeId, token: Token) -> Result<(), UnmountFault> {
        let body = json!({ "Name": asked.name, "ID": mount_id(token) });
        let answer = self.call(&asked.driver, "Unmount", &body, self.unmount_timeout(&asked.driver)).await;
        answer.map(drop).map_err(unmount_fault)
    }

    async fn remove(&self, asked: &VolumeId) -> Result<(), UnmountFault> {
        let body = json!({ "Name": asked.name });
        match self.call(&asked.driver, "Remove", &body, self.mount_timeout(&asked.driver)).await {
            // An earlier call without an answer was done.
            Err(DriverError::Refused { text, .. }) if says_missing(&text) => Ok(()),
            answer => answer.map(drop).map_err(unmount_fault),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use shared::store::Revision;
    use shared::volume::VolumeName;

    use super::*;

    /// A plugin that answers each call with the next of these, as raw HTTP; none closes the
    /// connection.
    fn plugin(answers: Vec<Option<String>>) -> (tempfile::TempDir, DockerPlugins) {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("ebs.sock")).unwrap();
        let calls = directory.path().join("calls");
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 4096];
                let length = stream.read(&mut request).unwrap();
                let line = String::from_utf8_lossy(&request[..length]).into_owned();
                let call = line.split([' ', '.']).nth(2).unwrap().to_owned();
                let mut file = std::fs::File::options().create(true).append(true).open(&calls).unwrap();
                writeln!(file, "{call}").unwrap();
                if let Some(answer) = answer {
                    stream.write_all(answer.as_bytes()).unwrap();
                }
            }
        });
        let plugins = at(&directory, &[("drivers", r#"{"canonical": {"aliases": ["ebs"]}}"#)]);
        (directory, plugins)
    }

    /// A host with these parameters, whose sockets and specifications are in `directory`.
    fn at(directory: &tempfile::TempDir, parameters: &[(&str, &str)]) -> DockerPlugins {
        let given = [("etcd_endpoints", "h:1")].iter().chain(parameters);
        let pairs = given.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let read = crate::parameters::KeeperParameters::read(&pairs.collect::<Vec<_>>()).unwrap();
        let mut plugins = DockerPlugins::new(&read.drivers);
        plugins.discovery.sockets = directory.path().to_owned();
        plugins.discovery.specifications = vec![directory.path().to_owned()];
        plugins.discovery.managed = directory.path().join("managed");
        plugins
    }

    /// The plugin's calls, in order.
    fn called(directory: &tempfile::TempDir) -> Vec<String> {
        let calls = std::fs::read_to_string(directory.path().join("calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    fn http(status: &str, body: &str) -> Option<String> {
        let length = body.len();
        Some(format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"))
    }

    fn volume() -> VolumeId {
        VolumeId { driver: Driver::new("ebs").unwrap(), name: VolumeName::new("vol1").unwrap() }
    }

    #[tokio::test]
    async fn a_mounts_answer_is_good_refused_or_unresolved() {
        let table = [
            (http("200 OK", r#"{"Mountpoint":"/m/vol1/data"}"#), "/m/vol1/data"),
            (http("200 OK", r#"{"Mountpoint":"/m","Err":""}"#), "/m"),
            (http("200 OK", r#"{"Err":"no such volume"}"#), "refused: no such volume"),
            (
                http("500 Internal Server Error", r#"{"Err":"resource not found"}"#),
                "refused: resource not found",
            ),
            (http("500 Internal Server Error", r#"{"Error":"old words"}"#), "refused: old words"),
            (http("404 Not Found", "404 page not found\n"), "refused: status 404, \"404 page not found\""),
            // Wherever it points to, that is no plugin.
            (
                http("302 Found\r\nLocation: http://127.0.0.1:1/", r#"{"Mountpoint":"/m"}"#),
                "refused: status 302, \"{\\\"Mountpoint",
            ),
            (http("504 Gateway Timeout", "x"), "unresolved: may go on behind the error status 504"),
            (
                http("500 Internal Server Error", r#"{"Err":""}"#),
                "unresolved: may go on behind the error status 500",
            ),
            (
                http("500 Internal Server Error", r#"{"Error":""}"#),
                "unresolved: may go on behind the error status 500",
            ),
            (
                http("500 Internal Server Error", r#"{"Err":"docker-legacy: Mount: vol1: failed: "}"#),
                "unresolved: may go on behind the error docker-legacy",
            ),
            (
                http(
                    "500 Internal Server Error",
                    r#"{"Err":"docker-legacy: Mount: vol1: failed: resource not found"}"#,
                ),
                "refused: docker-legacy",
            ),
            (http("200 OK", r#"{"mountpoint":"/m","ERR":null}"#), "/m"),
            (http("200 OK", r#"{"err":"no such volume"}"#), "refused: no such volume"),
            (http("200 OK", "{}"), "unusable: without a Mountpoint"),
            (http("200 OK", r#"{"Mountpoint":""}"#), "unusable: without a Mountpoint"),
            (http("200 OK", ""), "unusable: without a Mountpoint"),
            (Some("HTTP/1.1 204 No Content\r\n\r\n".into()), "unusable: without a Mountpoint"),
            (
                Some(
                    "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n".into(),
                ),
                "refused: status 302",
            ),
            (http("200 OK", "garbage"), "unresolved: \"garbage\" is no JSON object"),
            (Some("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{".into()), "unresolved: broke off"),
            (None, "unresolved: the connection broke"),
        ];
        for (answer, expected) in table {
            let (_directory, plugins) = plugin(vec![answer]);
            let shown = match plugins.mount(&volume(), None, Token(Revision(7))).await {
                Ok(path) => path,
                Err(MountFault::Refused(why)) => format!("refused: {why}"),
                Err(MountFault::Unresolved(why)) => format!("unresolved: {why}"),
                Err(MountFault::Unreachable(why)) => format!("unreachable: {why}"),
                Err(MountFault::Unusable { why, .. }) => format!("unusable: {why}"),
                Err(MountFault::NotItsOwn(why)) => format!("another's: {why}"),
            };
            let (kind, words) = expected.split_once(": ").unwrap_or(("", expected));
            assert!(shown.starts_with(kind) && shown.contains(words), "{expected} but {shown}");
        }
    }

    /// A plugin that gives these answers to whatever comes before Mount, and what was then done.
    async fn made_or_not(before: &[(&str, &str)], creates: bool) {
        let options = BTreeMap::from([("size".to_owned(), "5".to_owned())]);
        let mut answers: Vec<_> = before.iter().map(|(status, body)| http(status, body)).collect();
        // A plugin without Create: called by mistake, it refuses.
        let made = if creates { ("200 OK", "{}") } else { ("404 Not Found", "page not found") };
        answers.extend(creates.then(|| http(made.0, made.1)));
        answers.push(http("200 OK", r#"{"Mountpoint":"/m"}"#));
        let (directory, plugins) = plugin(answers);
        let mounted = plugins.mount(&volume(), Some(&options), Token(Revision(7))).await;
        assert_eq!(mounted, Ok("/m".into()), "{before:?}");
        let calls = called(&directory);
        assert_eq!(calls.contains(&"Create".to_owned()), creates, "{before:?}: {calls:?}");
        assert_eq!(calls.last().unwrap(), "Mount");
    }

    #[tokio::test]
    async fn a_missing_volume_is_created_and_an_existing_one_is_not() {
        let failed = "500 Internal Server Error";
        for missing in [
            &[(failed, r#"{"Err":"resource not found"}"#)][..],
            &[("200 OK", "{}")],
            &[("200 OK", r#"{"Volume":null}"#)],
            &[("200 OK", r#"{"Volume":{}}"#)],
            // An error that tells nothing, and no Get at all: the list tells.
            &[(failed, r#"{"Err":"AccessDenied"}"#), ("200 OK", r#"{"Volumes":[{"Name":"vol2"}]}"#)],
            &[("404 Not Found", "404 page not found"), ("200 OK", r#"{"Volumes":null}"#)],
        ] {
            made_or_not(missing, true).await;
        }
        for existing in [
            &[("200 OK", r#"{"Volume":{"Name":"vol1"}}"#)][..],
            &[("200 OK", r#"{"volume":{"name":"vol1","mountpoint":""}}"#)],
            &[(failed, r#"{"Err":"AccessDenied"}"#), ("200 OK", r#"{"Volumes":[{"Name":"VOL1"}]}"#)],
        ] {
            made_or_not(existing, false).await;
        }
    }

    #[tokio::test]
    async fn no_volume_is_created_on_an_error_that_does_not_say_that_it_is_missing() {
        let denied = http("500 Internal Server Error", r#"{"Err":"AccessDenied"}"#);
        let no_list = http("404 Not Found", "404 page not found");
        let (directory, plugins) = plugin(vec![denied, no_list, http("200 OK", "{}")]);
        let mounted = plugins.mount(&volume(), Some(&BTreeMap::new()), Token(Revision(7))).await;
        let Err(MountFault::Refused(why)) = mounted else { panic!("{mounted:?}") };
        assert!(why.contains("refused Get: AccessDenied"), "{why}");
        assert_eq!(called(&directory), ["Get", "List"]);
    }

    #[tokio::test]
    async fn a_volume_is_not_created_because_nobody_could_say_whether_it_exists() {
        let options = BTreeMap::new();
        let (_directory, plugins) = plugin(vec![None, http("200 OK", "{}")]);
        let Err(MountFault::Refused(why)) =
            plugins.mount(&volume(), Some(&options), Token(Revision(7))).await
        else {
            panic!()
        };
        assert!(why.contains("no proper answer to Get"), "{why}");
    }

    #[tokio::test]
    async fn a_create_without_an_answer_is_not_over() {
        let missing = http("500 Internal Server Error", r#"{"Err":"resource not found"}"#);
        let (directory, plugins) = plugin(vec![missing, None]);
        let made = plugins.mount(&volume(), Some(&BTreeMap::new()), Token(Revision(7))).await;
        assert!(matches!(made, Err(MountFault::Unresolved(_))), "{made:?}");
        assert_eq!(called(&directory), ["Get", "Create"]);
    }

    #[tokio::test]
    async fn an_unmounts_answer_is_an_end_or_none() {
        let answers = [
            (http("200 OK", "{}"), "done"),
            (http("500 Internal Server Error", r#"{"Err":"resource not found"}"#), "refused"),
            (http("408 Request Timeout", r#"{"Err":"timed out"}"#), "unresolved"),
            (None, "unresolved"),
        ];
        for (answer, expected) in answers {
            let (_directory, plugins) = plugin(vec![answer]);
            let kind = match plugins.unmount(&volume(), Token(Revision(7))).await {
                Ok(()) => "done",
                Err(UnmountFault::Refused(_)) => "refused",
                Err(UnmountFault::Unreachable(_)) => "unreachable",
                Err(UnmountFault::Unresolved(_)) => "unresolved",
            };
            assert_eq!(kind, expected);
        }
    }

    #[tokio::test]
    async fn the_paths_of_a_plugin_that_docker_manages_are_not_the_hosts() {
        let (directory, plugins) = plugin(vec![http("200 OK", r#"{"Mountpoint":"/volumes/vol1"}"#)]);
        let managed = directory.path().join("managed/id");
        std::fs::create_dir_all(&managed).unwrap();
        let config = r#"{"plugin":{"Name":"x/ebs:1","Enabled":true,"Config":{"Interface":{"Socket":"ebs.sock"},"PropagatedMount":"/volumes"}}}"#;
        std::fs::write(managed.join("config.json"), config).unwrap();
        std::fs::create_dir(directory.path().join("id")).unwrap();
        std::fs::rename(directory.path().join("ebs.sock"), directory.path().join("id/ebs.sock")).unwrap();
        let plugins = DockerPlugins { discovery: plugins.discovery, ..at(&directory, &[("drivers", "ebs")]) };
        let volume = VolumeId { driver: Driver::new("x/ebs:1").unwrap(), ..volume() };
        let expected = managed.join("propagated-mount/vol1").display().to_string();
        assert_eq!(plugins.mount(&volume, None, Token(Revision(7))).await, Ok(expected));
    }

    #[tokio::test]
    async fn files_that_do_not_answer_hold_up_a_few_threads_and_no_call() {
        let (_directory, plugins) = plugin(vec![]);
        let _hanging = plugins.looks.clone().acquire_many_owned(4).await.unwrap();
        let Err(MountFault::Unreachable(why)) = plugins.mount(&volume(), None, Token(Revision(7))).await
        else {
            panic!()
        };
        assert!(why.contains("where the plugin ebs listens could not be seen within 5 s"), "{why}");
    }

    #[tokio::test]
    async fn a_plugin_is_found_under_another_name_of_it() {
        let (_directory, plugins) = plugin(vec![http("200 OK", r#"{"Mountpoint":"/m"}"#)]);
        let leased = VolumeId { driver: Driver::new("canonical").unwrap(), ..volume() };
        assert_eq!(plugins.mount(&leased, None, Token(Revision(7))).await, Ok("/m".into()));
    }

    #[tokio::test]
    async fn a_plugin_that_is_not_there_has_nothing_under_way() {
        let (directory, plugins) = plugin(vec![]);
        let gone = VolumeId { driver: Driver::new("other").unwrap(), ..volume() };
        let Err(MountFault::Unreachable(why)) = plugins.mount(&gone, None, Token(Revision(7))).await else {
            panic!()
        };
        assert!(why.contains("no Docker volume plugin named other") && why.contains("other.sock"), "{why}");
        // A socket that nobody listens at.
        drop(UnixListener::bind(directory.path().join("dead.sock")).unwrap());
        let dead = VolumeId { driver: Driver::new("dead").unwrap(), ..volume() };
        let Err(MountFault::Unreachable(why)) = plugins.mount(&dead, None, Token(Revision(7))).await else {
            panic!()
        };
        assert!(why.contains("could not be reached"), "{why}");
    }

    /// A host that serves ebs, also called rexray, and scaleio, with a preempting plugin of ebs.
    fn two_drivers() -> (tempfile::TempDir, DockerPlugins) {
        let name = |name: &str| Driver::new(name).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let plugins = at(
            &directory,
            &[(
                "drivers",
                r#"{"ebs": {"aliases": ["rexray"], "preempt_plugin": "ebs-preempt"}, "scaleio": {}}"#,
            )],
        );
        let rexray = name("rexray");
        let canonical = plugins.drivers.naming.driver(&rexray);
        assert_eq!(plugins.drivers.preempt.get(canonical), Some(&name("ebs-preempt")));
        (directory, plugins)
    }

    #[tokio::test]
    async fn a_plugin_that_two_drivers_lead_to_is_not_called_for_either() {
        let (directory, plugins) = two_drivers();
        let at = |name: &str| directory.path().join(name);
        let _listeners = ["real.sock", "another.sock"].map(|name| UnixListener::bind(at(name)).unwrap());
        std::os::unix::fs::symlink(at("real.sock"), at("ebs.sock")).unwrap();
        let found = |driver: &str| {
            let found = plugins.discovery.find(&Driver::new(driver).unwrap());
            found.map(|endpoint| endpoint.shown()).map_err(|error| error.to_string())
        };
        assert_eq!(found("ebs"), Ok(at("ebs.sock").display().to_string()));
        // An alias is another name of it, with a socket of its own or without one.
        assert_eq!(found("rexray"), found("ebs"));
        std::os::unix::fs::symlink(at("ebs.sock"), at("rexray.sock")).unwrap();
        assert_eq!(found("rexray"), Ok(at("rexray.sock").display().to_string()));
        // A second driver at the same socket; a moment ago it was not.
        std::fs::write(at("scaleio.spec"), format!("unix://{}", at("real.sock").display())).unwrap();
        for (driver, other) in [("ebs", "scaleio"), ("rexray", "scaleio"), ("scaleio", "ebs")] {
            let error = found(driver).unwrap_err();
            assert!(error.contains(&format!("the plugin {driver} at ")), "{error}");
            assert!(error.contains(&format!("is the plugin {other} as well")), "{error}");
        }
        let volume = |driver: &str| VolumeId { driver: Driver::new(driver).unwrap(), ..volume() };
        let token = Token(Revision(7));
        let mount = plugins.mount(&volume("ebs"), None, token).await;
        assert!(matches!(mount, Err(MountFault::Unreachable(_))), "{mount:?}");
        let unmount = plugins.unmount(&volume("rexray"), token).await;
        assert!(matches!(unmount, Err(UnmountFault::Unreachable(_))), "{unmount:?}");
        std::fs::write(at("scaleio.spec"), format!("unix://{}", at("another.sock").display())).unwrap();
        assert!(found("ebs").is_ok() && found("scaleio").is_ok());
        // The plugin that takes volumes away, at the driver's own socket.
        std::os::unix::fs::symlink(at("ebs.sock"), at("ebs-preempt.sock")).unwrap();
        for driver in ["ebs", "rexray", "ebs-preempt"] {
            assert!(found(driver).unwrap_err().contains("is the plugin "), "{driver}");
        }
        let taken = plugins.take_away(&volume("ebs"), token).await;
        assert!(matches!(taken, Err(MountFault::Unreachable(_))), "{taken:?}");
        assert!(found("scaleio").is_ok());
    }

    #[tokio::test]
    async fn a_plugin_without_capabilities_is_of_local_scope_as_docker_takes_it() {
        for (answer, scope) in [
            (http("200 OK", r#"{"Capabilities":{"Scope":"global"}}"#), "global"),
            (http("200 OK", r#"{"Capabilities":{"Scope":"local"}}"#), "local"),
            (http("200 OK", "{}"), "local"),
            (http("404 Not Found", "404 page not found\n"), "local"),
        ] {
            let (_directory, plugins) = plugin(vec![answer]);
            assert_eq!(plugins.scope(&volume().driver, UNMOUNT_TIMEOUT).await.unwrap(), scope);
        }
        let (_directory, plugins) = plugin(vec![None]);
        assert!(plugins.scope(&volume().driver, UNMOUNT_TIMEOUT).await.is_err());
    }
}
