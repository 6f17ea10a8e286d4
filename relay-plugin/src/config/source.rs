//! Raw values by key: the TOML file, overridden by the environment.
//!
//! Reading a key is also declaring it: what nobody has read when `finish` is called is unknown, and unknown is an
//! error. So the readers in `sections` are the only list of keys there is.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use toml::{Table, Value};
use zeroize::Zeroizing;

use super::{duration, error::ConfigError, secret::SecretRef};

/// Prefix of the variables that override the file.
const PREFIX: &str = "KEYTURN_";

/// The `KEYTURN_…` variables.
#[derive(Default)]
pub struct Environment(BTreeMap<String, Zeroizing<String>>);

impl Environment {
    /// The variables of this process. The only place that reads them.
    pub fn from_process() -> Self {
        Self::from_pairs(std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        }))
    }

    /// Variables given by hand. Others than `KEYTURN_SECTION__FIELD` are left out.
    pub fn from_pairs<K: Into<String>, V: Into<String>>(
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        Self(
            pairs
                .into_iter()
                .map(|(name, value)| (name.into(), Zeroizing::new(value.into())))
                .filter(|(name, _)| name.starts_with(PREFIX) && name.contains("__"))
                .collect(),
        )
    }
}

/// `relay.auth.enabled` is overridden by `KEYTURN_RELAY__AUTH__ENABLED`.
fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_uppercase())
}

enum Raw {
    File(Value),
    Variable(Zeroizing<String>),
}

impl Raw {
    fn text(&self) -> Option<&str> {
        match self {
            Self::File(value) => value.as_str(),
            Self::Variable(text) => Some(text),
        }
    }

    fn integer(&self) -> Option<u64> {
        match self {
            Self::File(value) => value.as_integer().and_then(|n| u64::try_from(n).ok()),
            Self::Variable(text) => text.parse().ok(),
        }
    }

    fn boolean(&self) -> Option<bool> {
        match self {
            Self::File(value) => value.as_bool(),
            Self::Variable(text) => text.parse().ok(),
        }
    }

    /// A list of strings; in a variable separated by commas.
    fn list(&self) -> Option<Vec<String>> {
        match self {
            Self::File(value) => value
                .as_array()?
                .iter()
                .map(|item| item.as_str().map(str::to_owned))
                .collect(),
            Self::Variable(text) => Some(
                text.split(',')
                    .map(str::trim)
                    .filter(|item| !item.is_empty())
                    .map(str::to_owned)
                    .collect(),
            ),
        }
    }

    fn origin(&self, key: &str) -> String {
        match self {
            Self::File(_) => "the configuration file".to_owned(),
            Self::Variable(_) => variable(key),
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::File(value) => value.to_string(),
            Self::Variable(text) => format!("{:?}", text.as_str()),
        }
    }
}

/// The keys and values of one configuration while it is being read.
pub(super) struct Keys {
    root: Table,
    environment: Environment,
    /// Relative paths are relative to the configuration file.
    base: PathBuf,
    known: BTreeSet<String>,
}

impl Keys {
    pub(super) fn new(root: Table, environment: Environment, base: &Path) -> Self {
        Self {
            root,
            environment,
            base: base.to_owned(),
            known: BTreeSet::new(),
        }
    }

    fn take(&mut self, key: &str) -> Option<Raw> {
        self.known.insert(key.to_owned());
        let (section, field) = key.rsplit_once('.').unwrap_or(("", key));
        let from_file = section
            .split('.')
            .try_fold(&mut self.root, |table, name| {
                table.get_mut(name)?.as_table_mut()
            })
            .and_then(|table| table.remove(field));
        let from_environment = self.environment.0.remove(&variable(key));
        from_environment
            .map(Raw::Variable)
            .or(from_file.map(Raw::File))
    }

    fn parsed<T>(
        &mut self,
        key: &str,
        expected: &str,
        parse: impl FnOnce(&Raw) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(raw) = self.take(key) else {
            return Ok(None);
        };
        match parse(&raw) {
            Some(value) => Ok(Some(value)),
            None => Err(ConfigError::Invalid {
                key: key.to_owned(),
                expected: expected.to_owned(),
                found: raw.shown(),
                origin: raw.origin(key),
            }),
        }
    }

    /// A text that `parse` understands.
    pub(super) fn text<T>(
        &mut self,
        key: &str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        self.parsed(key, expected, |raw| parse(raw.text()?))
    }

    /// A whole number within `range`.
    pub(super) fn number(
        &mut self,
        key: &str,
        range: std::ops::RangeInclusive<u64>,
        default: u64,
    ) -> Result<u64, ConfigError> {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        let value = self.parsed(key, &expected, |raw| {
            raw.integer().filter(|n| range.contains(n))
        })?;
        Ok(value.unwrap_or(default))
    }

    pub(super) fn boolean(&mut self, key: &str, default: bool) -> Result<bool, ConfigError> {
        Ok(self
            .parsed(key, "true or false", Raw::boolean)?
            .unwrap_or(default))
    }

    /// A duration such as "90s", "10m", "6h" or "7d", within `range`.
    pub(super) fn duration(
        &mut self,
        key: &str,
        range: std::ops::RangeInclusive<Duration>,
        default: Duration,
    ) -> Result<Duration, ConfigError> {
        let expected = format!(
            "a duration from {} to {}, written like \"90s\", \"10m\", \"6h\" or \"7d\"",
            duration::show(*range.start()),
            duration::show(*range.end())
        );
        let value = self.text(key, &expected, |text| {
            duration::parse(text).filter(|d| range.contains(d))
        })?;
        Ok(value.unwrap_or(default))
    }

    /// A list of texts, each of which `parse` understands.
    pub(super) fn list<T>(
        &mut self,
        key: &str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<Vec<T>>, ConfigError> {
        self.parsed(key, expected, |raw| {
            raw.list()?.iter().map(|item| parse(item)).collect()
        })
    }

    pub(super) fn path(
        &mut self,
        key: &str,
        expected: &str,
    ) -> Result<Option<PathBuf>, ConfigError> {
        let base = self.base.clone();
        self.text(key, expected, |text| {
            (!text.is_empty()).then(|| base.join(text))
        })
    }

    /// A list of paths; none is an empty list.
    pub(super) fn paths(&mut self, key: &str, expected: &str) -> Result<Vec<PathBuf>, ConfigError> {
        let base = self.base.clone();
        let found = self.list(key, expected, |text| {
            (!text.is_empty()).then(|| base.join(text))
        })?;
        Ok(found.unwrap_or_default())
    }

    /// A secret: `key` holds it, or `key_file` names the file that does. Exactly one of the two; a variable of either
    /// name overrides the file's choice.
    pub(super) fn secret(
        &mut self,
        key: &'static str,
        expected: &str,
    ) -> Result<SecretRef, ConfigError> {
        self.optional_secret(key, expected)?
            .ok_or_else(|| ConfigError::Missing {
                key: format!("{key}_file"),
                expected: format!("the path of a file holding {expected}"),
            })
    }

    /// As [`Keys::secret`], where there need not be one.
    pub(super) fn optional_secret(
        &mut self,
        key: &'static str,
        expected: &str,
    ) -> Result<Option<SecretRef>, ConfigError> {
        let file_key = format!("{key}_file");
        let (inline, path) = match (self.take(key), self.take(&file_key)) {
            (Some(raw @ Raw::Variable(_)), Some(Raw::File(_))) => (Some(raw), None),
            (Some(Raw::File(_)), Some(raw @ Raw::Variable(_))) => (None, Some(raw)),
            both => both,
        };
        match (inline, path) {
            (Some(raw), None) => {
                let text = raw.text().ok_or_else(|| ConfigError::Invalid {
                    key: key.to_owned(),
                    expected: expected.to_owned(),
                    found: "a value that is not shown".to_owned(),
                    origin: raw.origin(key),
                })?;
                Ok(Some(SecretRef::inline(
                    key,
                    Zeroizing::new(text.to_owned()),
                )))
            }
            (None, Some(raw)) => match raw.text() {
                Some(path) if !path.is_empty() => {
                    Ok(Some(SecretRef::file(key, self.base.join(path))))
                }
                _ => Err(ConfigError::Invalid {
                    key: file_key.clone(),
                    expected: "the path of a file".to_owned(),
                    found: raw.shown(),
                    origin: raw.origin(&file_key),
                }),
            },
            (Some(_), Some(_)) => Err(ConfigError::Conflict {
                key: key.to_owned(),
                reason: format!("given both here and by {file_key}; give one"),
            }),
            (None, None) => Ok(None),
        }
    }

    /// Refuses whatever nobody has read. Returns the names of all keys there are.
    pub(super) fn finish(self) -> Result<BTreeSet<String>, ConfigError> {
        if let Some(key) = first_leaf("", &self.root, &self.known) {
            return Err(ConfigError::UnknownKey { key });
        }
        if let Some(name) = self.environment.0.into_keys().next() {
            return Err(ConfigError::UnknownVariable { name });
        }
        Ok(self.known)
    }
}

/// The first key left in the table. An empty section is no error if it is one that has keys.
fn first_leaf(prefix: &str, table: &Table, known: &BTreeSet<String>) -> Option<String> {
    table.iter().find_map(|(name, value)| {
        let key = if prefix.is_empty() {
            name.clone()
        } else {
            format!("{prefix}.{name}")
        };
        match value {
            Value::Table(inner) if !inner.is_empty() => first_leaf(&key, inner, known),
            Value::Table(_) if known.iter().any(|k| k.starts_with(&format!("{key}."))) => None,
            _ => Some(key),
        }
    })
}
