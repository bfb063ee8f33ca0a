//! Who may use which volumes: an operator's rules, by what Mesos says of the framework that a container is of.
//!
//! The first rule that is about the volume, the one who asks and what is asked decides; without one, the file's default. Nothing here
//! is a framework's own word for a single task (its labels, its task's name): what it can say of itself is in SECURITY.md.

use std::collections::BTreeMap;
use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Deserializer, de};
use shared::quote;
use shared::volume::{Driver, VolumeId};

/// What is asked of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Action {
    /// Mounting it.
    Use,
    /// Having the driver make it.
    Create,
    /// Having the driver remove it.
    Remove,
}

/// What happens to a volume about which no rule says anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Otherwise {
    Allow,
    #[default]
    Deny,
}

/// A framework as its agent shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Framework {
    id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    principal: Option<String>,
    #[serde(default)]
    role: Option<String>,
    #[serde(default)]
    roles: Vec<String>,
}

impl Framework {
    /// Its name, and its role where it has one alone.
    pub(crate) fn named(&self) -> (String, Option<String>) {
        let only = if let [role] = &self.roles[..] { Some(role) } else { None };
        (self.name.clone(), self.role.as_ref().or(only).cloned())
    }
}

/// The frameworks of an agent, by id.
pub(crate) fn frameworks(state: &str) -> Result<BTreeMap<String, Framework>, String> {
    #[derive(Deserialize)]
    struct State {
        #[serde(default)]
        frameworks: Vec<Framework>,
    }
    let state: State = serde_json::from_str(state).map_err(|error| format!("it cannot be read: {error}"))?;
    Ok(state.frameworks.into_iter().map(|framework| (framework.id.clone(), framework)).collect())
}

/// A volume's names as rules may write them: by each name of its driver.
pub(crate) fn names(volume: &VolumeId, aliases: &BTreeMap<Driver, Driver>) -> Vec<String> {
    let others = aliases.iter().filter(|(_, of)| **of == volume.driver).map(|(alias, _)| alias);
    std::iter::once(&volume.driver).chain(others).map(|driver| format!("{driver}/{}", volume.name)).collect()
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    /// None of a standalone container.
    pub(crate) framework: Option<&'a Framework>,
    /// The user that the container runs as, where Mesos says it.
    pub(crate) user: Option<&'a str>,
}

impl Subject<'_> {
    fn in_words(&self) -> String {
        let Some(Framework { id, name, principal, .. }) = self.framework else {
            return "a container of no framework".into();
        };
        let principal =
            principal.as_deref().map_or("no principal".into(), |p| format!("the principal {p:?}"));
        format!("framework {name:?} ({id}, {principal})")
    }
}

/// The rules of a file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VolumeRules {
    #[serde(default)]
    default: Otherwise,
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    name: String,
    #[serde(default)]
    allow: Vec<Action>,
    #[serde(default)]
    deny: Vec<Action>,
    /// Globs of `driver/name`.
    #[serde(deserialize_with = "volume_globs")]
    volumes: GlobSet,
    #[serde(default, deserialize_with = "some_globs")]
    frameworks: Option<GlobSet>,
    #[serde(default, deserialize_with = "some_globs")]
    principals: Option<GlobSet>,
    #[serde(default, deserialize_with = "some_globs")]
    roles: Option<GlobSet>,
    #[serde(default, deserialize_with = "some_globs")]
    users: Option<GlobSet>,
}

fn globs(texts: &[String], any_case: bool) -> Result<GlobSet, globset::Error> {
    let mut set = GlobSetBuilder::new();
    for text in texts {
        set.add(GlobBuilder::new(text).case_insensitive(any_case).literal_separator(true).build()?);
    }
    set.build()
}

/// Without regard to case: most drivers' volumes have one name, however it is spelt.
fn volume_globs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<GlobSet, D::Error> {
    globs(&Vec::deserialize(deserializer)?, true).map_err(de::Error::custom)
}

fn some_globs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<GlobSet>, D::Error> {
    globs(&Vec::deserialize(deserializer)?, false).map(Some).map_err(de::Error::custom)
}

impl VolumeRules {
    /// Reads them; a file that somebody else than root may write holds no rules.
    ///
    /// # Errors
    /// A sentence with the file's name.
    pub(crate) fn read(file: &Path) -> Result<Self, String> {
        use std::os::unix::fs::MetadataExt;
        let unread = |why: String| format!("the volume rules in {} cannot be read: {why}", file.display());
        let text = std::fs::read_to_string(file).map_err(|error| unread(error.to_string()))?;
        let of = std::fs::metadata(file).map_err(|error| unread(error.to_string()))?;
        if of.mode() & 0o022 != 0 || (of.uid() != 0 && of.uid() != rustix::process::geteuid().as_raw()) {
            return Err(unread("others than root may write it".into()));
        }
        Self::parse(&text).map_err(unread)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let read: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        for rule in &read.rules {
            let refused = |why: &str| Err(format!("the rule {:?} {why}", rule.name));
            if rule.allow.iter().any(|action| rule.deny.contains(action)) {
                return refused("allows and denies the same");
            }
            if rule.allow.is_empty() && rule.deny.is_empty() {
                return refused("neither allows nor denies anything");
            }
            let lists = [&rule.frameworks, &rule.principals, &rule.roles, &rule.users];
            if rule.volumes.is_empty() || lists.into_iter().flatten().any(GlobSet::is_empty) {
                return refused("has an empty list, which fits nobody and nothing");
            }
        }
        Ok(read)
    }

    /// Whether somebody may do something with a volume, of which these are the [`names`].
    ///
    /// # Errors
    /// A sentence for the framework that names the rule.
    pub(crate) fn check(
        &self,
        subject: Subject<'_>,
        volume: &VolumeId,
        names: &[String],
        action: Action,
    ) -> Result<(), String> {
        let decides = |rule: &&Rule| {
            let denies = rule.deny.contains(&action);
            (denies || rule.allow.contains(&action)) && rule.is_about(subject, names, denies)
        };
        let refused = |by: String| {
            let to = match action {
                Action::Use => "use",
                Action::Create => "create",
                Action::Remove => "remove",
            };
            let text = format!("{} may not {to} volume {volume}: {by}", subject.in_words());
            Err(quote::line(&text).into_owned())
        };
        match self.rules.iter().find(decides) {
            Some(rule) if rule.allow.contains(&action) => Ok(()),
            Some(rule) => refused(format!("this host's volume rule {:?} denies it", rule.name)),
            None if self.default == Otherwise::Allow => Ok(()),
            None => refused("none of this host's volume rules allows it".into()),
        }
    }
}

impl Rule {
    fn is_about(&self, subject: Subject<'_>, names: &[String], denies: bool) -> bool {
        let any = |globs: &Option<GlobSet>, of: &[&str]| {
            globs.as_ref().is_none_or(|globs| of.iter().any(|one| globs.is_match(one)))
        };
        let framework = subject.framework;
        let name: Vec<_> = framework.map(|framework| framework.name.as_str()).into_iter().collect();
        let principal: Vec<_> =
            framework.and_then(|framework| framework.principal.as_deref()).into_iter().collect();
        let roles = framework.into_iter().flat_map(|f| f.roles.iter().chain(&f.role).map(String::as_str));
        let user: Vec<_> = subject.user.into_iter().collect();
        // Who runs as a user that is not known runs as any: what is denied to one is denied to them.
        let user_fits = any(&self.users, &user) || (subject.user.is_none() && denies);
        names.iter().any(|name| self.volumes.is_match(name))
            && any(&self.frameworks, &name)
            && any(&self.principals, &principal)
            && any(&self.roles, &roles.collect::<Vec<_>>())
            && user_fits
    }
}

#[cfg(test)]
mod tests {
    use shared::volume::VolumeName;

    use super::*;

    const RULES: &str = r#"{"rules": [
        {"name": "no prod", "deny": ["use", "create"], "volumes": ["ebs/prod-*"], "roles": ["dev", "test*"]},
        {"name": "etl", "allow": ["use"], "volumes": ["ebs/*"], "frameworks": ["marathon"], "principals": ["etl"]},
        {"name": "makes", "allow": ["create"], "volumes": ["ebs/scratch-?"], "users": ["batch"]},
        {"name": "scratch", "allow": ["use"], "volumes": ["ebs/scratch-?"]}
    ]}"#;

    fn volume(text: &str) -> VolumeId {
        let (driver, name) = text.split_once('/').unwrap();
        VolumeId { driver: Driver::new(driver).unwrap(), name: VolumeName::new(name).unwrap() }
    }

    fn driver(name: &str) -> Driver {
        Driver::new(name).unwrap()
    }

    fn framework(state: &str) -> Framework {
        let all = frameworks(&format!(r#"{{"frameworks": [{state}]}}"#)).unwrap();
        all.into_values().next().unwrap()
    }

    #[test]
    fn the_first_rule_that_is_about_all_of_it_decides() {
        let rules = VolumeRules::parse(RULES).unwrap();
        let etl =
            framework(r#"{"id": "f1", "name": "marathon", "principal": "etl", "roles": ["etl", "dev"]}"#);
        let old = framework(r#"{"id": "f2", "name": "marathon", "principal": "etl", "role": "etl"}"#);
        let forged = framework(r#"{"id": "f3", "name": "marathon\nE1130", "role": "*"}"#);
        let check = |framework: Option<&Framework>, user, volume_name: &str, action| {
            let (volume, alias) = (volume(volume_name), [(driver("rexray"), driver("ebs"))].into());
            let refused = rules.check(Subject { framework, user }, &volume, &names(&volume, &alias), action);
            refused.err().unwrap_or_default()
        };
        let (etl, old, forged) = (Some(&etl), Some(&old), Some(&forged));
        assert_eq!(check(etl, None, "ebs/db", Action::Use), "");
        assert_eq!(
            check(etl, None, "ebs/prod-1", Action::Use),
            r#"framework "marathon" (f1, the principal "etl") may not use volume ebs/prod-1: this host's volume rule "no prod" denies it"#
        );
        assert_eq!(check(old, None, "ebs/prod-1", Action::Use), "", "its role is another");
        let none = check(old, None, "ebs/db", Action::Create);
        assert!(
            none.ends_with("may not create volume ebs/db: none of this host's volume rules allows it"),
            "{none}"
        );
        let said = check(forged, None, "ebs/db", Action::Use);
        assert!(
            said.contains(r#"framework "marathon\nE1130" (f3, no principal)"#) && !said.contains('\n'),
            "{said}"
        );
        // Who has no framework fits no condition about one.
        assert!(
            check(None, Some("batch"), "ebs/db", Action::Use)
                .starts_with("a container of no framework may not")
        );
        assert_eq!(check(None, None, "ebs/scratch-1", Action::Use), "");
        assert_eq!(check(None, Some("batch"), "ebs/scratch-1", Action::Create), "");
        for user in [None, Some("root")] {
            assert_ne!(check(None, user, "ebs/scratch-1", Action::Create), "", "{user:?}");
        }
        let root = r#"{"default": "allow", "rules": [{"name": "a", "deny": ["use"], "volumes": ["**"], "users": ["root"]}]}"#;
        let (root, db) = (VolumeRules::parse(root).unwrap(), volume("ebs/db"));
        for (user, denied) in [(Some("root"), true), (None, true), (Some("etl"), false)] {
            let subject = Subject { framework: None, user };
            assert_eq!(
                root.check(subject, &db, &["ebs/db".into()], Action::Use).is_err(),
                denied,
                "{user:?}"
            );
        }
        assert_ne!(check(None, None, "ebs/scratch-12", Action::Use), "");
        assert_ne!(check(None, None, "nfs/scratch-1", Action::Use), "");
        // However they are spelt, and whichever of its driver's names stands in the rule.
        let old = r#"{"default": "allow", "rules": [{"name": "a", "deny": ["use"], "volumes": ["rexray/Prod-*"]}]}"#;
        let (old, prod) = (VolumeRules::parse(old).unwrap(), volume("ebs/prod-1"));
        let names = |of: &VolumeId| names(of, &[(driver("rexray"), driver("ebs"))].into());
        let nobody = Subject { framework: None, user: None };
        assert!(old.check(nobody, &prod, &names(&prod), Action::Use).is_err());
        let db = volume("ebs/db");
        assert_eq!(old.check(nobody, &db, &names(&db), Action::Use), Ok(()));
    }

    #[test]
    fn a_file_that_does_not_say_what_it_means_is_refused() {
        let table = [
            ("{}", "missing field `rules`"),
            (r#"{"rules": [{"name": "a", "volumes": ["*"], "permit": ["use"]}]}"#, "unknown field `permit`"),
            (r#"{"rules": [{"name": "a", "allow": ["use"]}]}"#, "missing field `volumes`"),
            (
                r#"{"rules": [{"name": "a", "allow": ["mount"], "volumes": ["*"]}]}"#,
                "unknown variant `mount`",
            ),
            (r#"{"rules": [{"name": "a", "allow": ["use"], "volumes": ["["]}]}"#, "unclosed character class"),
            (
                r#"{"rules": [{"name": "a", "allow": ["use"], "deny": ["use"], "volumes": ["*"]}]}"#,
                "allows and denies",
            ),
            (r#"{"default": "maybe", "rules": []}"#, "unknown variant `maybe`"),
            (r#"{"rules": [{"name": "a", "volumes": ["*"]}]}"#, "neither allows nor denies"),
            (
                r#"{"rules": [{"name": "a", "allow": ["use"], "volumes": ["*"], "roles": []}]}"#,
                "has an empty list",
            ),
            (r#"{"rules": [{"name": "a", "allow": ["use"], "volumes": []}]}"#, "has an empty list"),
        ];
        for (text, expected) in table {
            let error = VolumeRules::parse(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_file_that_others_may_write_holds_no_rules() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("rules.json");
        assert!(VolumeRules::read(&file).unwrap_err().contains("No such file"));
        std::fs::write(&file, RULES).unwrap();
        assert!(VolumeRules::read(&file).is_ok());
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o662)).unwrap();
        assert!(VolumeRules::read(&file).unwrap_err().contains("others than root may write it"));
    }
}
