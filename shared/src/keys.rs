//! Where things are in etcd.
//!
//! ```text
//! <prefix>/                           default /extvol/v1
//!   cluster                           id of this installation, naming rules
//!   leases/<driver>/<volume>          one record per volume that was ever leased
//!   held/<holder>/<driver>/<volume>   the leases of one holder, by which it finds its own (protocol core)
//!   sessions/<holder>                 one record per agent host
//!   events/<revision>/<subject>       what happened, in the order of etcd's revisions
//!   eventlog/trimmed                  up to where events were trimmed
//!   eventlog/agents/<holder>          how a holder's agent stood when an event last told it
//!   beats/<holder>                    its heartbeat (protocol core)
//!   storm                             the reclaimers' storm guard (protocol core)
//! ```
//!
//! `<revision>` has 19 digits, so that etcd's order of keys is the order of revisions. `<subject>` is
//! what the event is about: the key, below the prefix, of the record that was written or deleted at that
//! revision; or, sorting behind these, what came to pass outside etcd after it: `then/dropped/<process>-<number>`
//! before `then/holders/<holder>` before `then/marked-gone/<holder>`.
//!
//! Each segment is percent-encoded, so that no name can reach into another's place. All values are
//! JSON, to be read with `etcdctl get --prefix`.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::store::Revision;
use crate::volume::{Driver, Holder, VolumeId, VolumeName};

/// Everything but RFC 3986's unreserved characters.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The key layout under one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
}

fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// What a segment stands for; `None` for one that [`segment`] does not write (`zz%zz`, `%61`): two spellings would be
/// two records of one name.
fn decode(text: &str) -> Option<String> {
    let decoded = percent_decode_str(text).decode_utf8().ok()?;
    (segment(&decoded) == text).then(|| decoded.into_owned())
}

/// The volume in `<driver>/<volume>`.
fn volume_in(text: &str) -> Option<VolumeId> {
    let (driver, name) = text.split_once('/')?;
    let driver = Driver::new(decode(driver)?).ok()?;
    let name = VolumeName::new(decode(name)?).ok()?;
    Some(VolumeId { driver, name })
}

impl Keys {
    /// The layout below `prefix`; a trailing slash is dropped.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.trim_end_matches('/').to_owned() }
    }

    /// The installation's record.
    #[must_use]
    pub fn cluster(&self) -> String {
        format!("{}/cluster", self.prefix)
    }

    /// The prefix of all lease keys.
    #[must_use]
    pub fn leases(&self) -> String {
        format!("{}/leases/", self.prefix)
    }

    /// A volume's lease. The caller gives the canonical name.
    #[must_use]
    pub fn lease(&self, volume: &VolumeId) -> String {
        let (driver, name) = (segment(volume.driver.as_str()), segment(volume.name.as_str()));
        format!("{}/leases/{driver}/{name}", self.prefix)
    }

    /// The volume whose lease `key` is; `None` for any other key.
    #[must_use]
    pub fn volume_of(&self, key: &str) -> Option<VolumeId> {
        volume_in(key.strip_prefix(&self.leases())?)
    }

    /// The prefix of all holders' indexes of their leases.
    #[must_use]
    pub fn indexes(&self) -> String {
        format!("{}/held/", self.prefix)
    }

    /// The prefix of a holder's index of its leases.
    #[must_use]
    pub fn held_by(&self, holder: &Holder) -> String {
        format!("{}{}/", self.indexes(), segment(holder.as_str()))
    }

    /// A lease in its holder's index.
    #[must_use]
    pub fn held(&self, holder: &Holder, volume: &VolumeId) -> String {
        let (driver, name) = (segment(volume.driver.as_str()), segment(volume.name.as_str()));
        format!("{}{driver}/{name}", self.held_by(holder))
    }

    /// The holder and the volume of which `key` is the index; `None` for any other key.
    #[must_use]
    pub fn held_of(&self, key: &str) -> Option<(Holder, VolumeId)> {
        let rest = key.strip_prefix(&self.indexes())?;
        let (holder, volume) = rest.split_once('/')?;
        Some((Holder::new(decode(holder)?).ok()?, volume_in(volume)?))
    }

    /// The prefix of all heartbeats.
    #[must_use]
    pub fn beats(&self) -> String {
        format!("{}/beats/", self.prefix)
    }

    /// The holder whose heartbeat `key` is; `None` for any other key.
    #[must_use]
    pub fn holder_of_beat(&self, key: &str) -> Option<Holder> {
        Holder::new(decode(key.strip_prefix(&self.beats())?)?).ok()
    }

    /// A holder's heartbeat.
    #[must_use]
    pub fn beat(&self, holder: &Holder) -> String {
        format!("{}/beats/{}", self.prefix, segment(holder.as_str()))
    }

    /// The storm guard of the master modules.
    #[must_use]
    pub fn storm(&self) -> String {
        format!("{}/storm", self.prefix)
    }

    /// The prefix of all session keys.
    #[must_use]
    pub fn sessions(&self) -> String {
        format!("{}/sessions/", self.prefix)
    }

    /// A holder's session.
    #[must_use]
    pub fn session(&self, holder: &Holder) -> String {
        format!("{}/sessions/{}", self.prefix, segment(holder.as_str()))
    }

    /// The holder whose session `key` is; `None` for any other key.
    #[must_use]
    pub fn holder_of(&self, key: &str) -> Option<Holder> {
        Holder::new(decode(key.strip_prefix(&self.sessions())?)?).ok()
    }

    /// The prefix of all event keys.
    #[must_use]
    pub fn events(&self) -> String {
        format!("{}/events/", self.prefix)
    }

    /// The event about `subject` that has its place at `revision`.
    #[must_use]
    pub fn event(&self, revision: Revision, subject: &Subject) -> String {
        format!("{}/events/{:019}/{subject}", self.prefix, revision.0)
    }

    /// Revision and subject of the event whose key `key` is; `None` for any other key.
    #[must_use]
    pub fn event_of<'k>(&self, key: &'k str) -> Option<(Revision, &'k str)> {
        let (revision, subject) = key.strip_prefix(&self.events())?.split_once('/')?;
        let digits = revision.len() == REVISION_DIGITS && revision.bytes().all(|c| c.is_ascii_digit());
        Some((Revision(revision.parse().ok().filter(|_| digits)?), subject))
    }

    /// The record that says up to where events were trimmed.
    #[must_use]
    pub fn events_trimmed(&self) -> String {
        format!("{}/eventlog/trimmed", self.prefix)
    }

    /// The prefix of all records of how agents stood when that was last told.
    #[must_use]
    pub fn standings(&self) -> String {
        format!("{}/eventlog/agents/", self.prefix)
    }

    /// How a holder's agent stood when an event last told it.
    #[must_use]
    pub fn standing(&self, holder: &Holder) -> String {
        format!("{}/eventlog/agents/{}", self.prefix, segment(holder.as_str()))
    }

    /// The holder whose agent's standing `key` holds; `None` for any other key.
    #[must_use]
    pub fn holder_of_standing(&self, key: &str) -> Option<Holder> {
        Holder::new(decode(key.strip_prefix(&self.standings())?)?).ok()
    }

    /// The subject of events about the record with this key below the prefix, whether or not it is a
    /// key of this layout.
    #[must_use]
    pub fn subject_of_record(&self, key: &str) -> Subject {
        let below = key.strip_prefix(&self.prefix).and_then(|key| key.strip_prefix('/')).unwrap_or(key);
        let plain = |c: char| c.is_ascii_graphic();
        if below.len() <= SUBJECT_BYTES_MAX && below.chars().all(plain) {
            return Subject(below.to_owned());
        }
        let mut encoded = utf8_percent_encode(below, RECORD_KEY).to_string();
        encoded.truncate(SUBJECT_BYTES_MAX);
        Subject(encoded)
    }

    /// The key of the lease or session that an event's subject is about; `None` for any other subject.
    #[must_use]
    pub fn record_of_subject(&self, subject: &str) -> Option<String> {
        let key = format!("{}/{subject}", self.prefix);
        let known = self.volume_of(&key).is_some() || self.holder_of(&key).is_some();
        known.then_some(key)
    }

    /// Before every other subject.
    #[must_use]
    pub fn least_subject() -> Subject {
        Subject(String::new())
    }

    /// The subject of events about a holder's agent.
    #[must_use]
    pub fn subject_of_agent(holder: &Holder) -> Subject {
        Subject(format!("then/holders/{}", segment(holder.as_str())))
    }

    /// The subject of the event that a holder's agent was marked gone; its place is the revision that wrote the
    /// holder's session as dead.
    #[must_use]
    pub fn subject_of_mark(holder: &Holder) -> Subject {
        Subject(format!("then/marked-gone/{}", segment(holder.as_str())))
    }

    /// The subject of events about events that were dropped: for which time, by which process.
    #[must_use]
    pub fn subject_of_dropped(process: u64, number: u64) -> Subject {
        Subject(format!("then/dropped/{process:016x}-{number}"))
    }
}

/// Digits of a revision in an event's key: those of the largest one.
const REVISION_DIGITS: usize = 19;

/// Longest subject. The longest key of a volume's lease is shorter; only keys that are none of this
/// layout are cut.
const SUBJECT_BYTES_MAX: usize = 2_048;

/// What is encoded in a key that is none of this layout: its slashes stay.
const RECORD_KEY: &AsciiSet = &SEGMENT.remove(b'/').remove(b'%');

/// What an event is about, as the last part of its key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject(String);

impl Subject {
    /// As it stands in the key.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Default for Keys {
    fn default() -> Self {
        Self::new("/extvol/v1")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_gives_back_the_volume_it_was_made_of() {
        let keys = Keys::new("/x/");
        for (driver, name) in
            [("ebs", "vol-7b"), ("rexray/ebs:latest", "a b%2f"), ("d", "ä.~"), ("rbd", "pool/image")]
        {
            let volume =
                VolumeId { driver: Driver::new(driver).unwrap(), name: VolumeName::new(name).unwrap() };
            let holder = Holder::new("agent-1.example:5051").unwrap();
            assert_eq!(keys.held_of(&keys.held(&holder, &volume)), Some((holder, volume.clone())));
            assert_eq!(keys.held_of(&keys.lease(&volume)), None);
            assert_eq!(keys.volume_of(&keys.lease(&volume)), Some(volume));
        }
        assert_eq!(keys.volume_of("/x/sessions/a"), None);
        let holder = Holder::new("agent-1.example:5051").unwrap();
        assert_eq!(keys.holder_of(&keys.session(&holder)), Some(holder.clone()));
        assert_eq!(keys.holder_of_beat(&keys.beat(&holder)), Some(holder.clone()));
        assert_eq!(keys.holder_of_beat(&keys.session(&holder)), None);
    }

    #[test]
    fn a_key_of_another_spelling_is_nobodys() {
        let keys = Keys::new("/x");
        for key in ["/x/leases/evil/zz%zz", "/x/leases/ebs/%61", "/x/leases/ebs/%c3%bc", "/x/leases/ebs/a b"]
        {
            assert_eq!(keys.volume_of(key), None, "{key}");
        }
        assert_eq!(keys.holder_of("/x/sessions/%61"), None);
        assert_eq!(keys.holder_of_beat("/x/beats/a%"), None);
    }

    #[test]
    fn a_drivers_slash_does_not_make_a_segment() {
        let volume = VolumeId { driver: Driver::new("a/b").unwrap(), name: VolumeName::new("c").unwrap() };
        assert_eq!(Keys::default().lease(&volume), "/extvol/v1/leases/a%2Fb/c");
    }

    #[test]
    fn event_keys_sort_by_revision_and_give_it_back() {
        let keys = Keys::new("/x");
        let subject = keys.subject_of_record("/x/leases/ebs/vol-7b");
        let key = |revision| keys.event(Revision(revision), &subject);
        assert_eq!(key(42), "/x/events/0000000000000000042/leases/ebs/vol-7b");
        assert!(key(9) < key(10) && key(10) < key(i64::MAX), "as text");
        assert_eq!(keys.event_of(&key(42)), Some((Revision(42), "leases/ebs/vol-7b")));
        for other in ["/x/events/42/a", "/x/events/000000000000000004x/a", "/x/events/", "/x/leases/a/b"] {
            assert_eq!(keys.event_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_subject_is_bounded_and_of_printable_text_whatever_the_key() {
        let keys = Keys::new("/x");
        let wild = format!("/x/leases/\n {}", "ü".repeat(4_000));
        let subject = keys.subject_of_record(&wild);
        assert!(subject.as_str().starts_with("leases/%0A%20%C3%BC"), "{subject}");
        assert_eq!(subject.as_str().len(), SUBJECT_BYTES_MAX);
        // The longest names there are: each byte encoded as three.
        let longest = VolumeId {
            driver: Driver::new("%".repeat(255)).unwrap(),
            name: VolumeName::new("%".repeat(255)).unwrap(),
        };
        let lease = keys.lease(&longest);
        assert_eq!(format!("/x/{}", keys.subject_of_record(&lease)), lease);
    }
}
