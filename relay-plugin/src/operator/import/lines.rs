//! Many clients from one file: a JSON object per line, `{"client_id", "groups", "secret" | "bcrypt"}`.
//!
//! Every line is judged by itself and reported; one that fails does not stop the others, and running the same file again finishes what was left.

use std::collections::HashSet;

use futures::StreamExt as _;
use keyturn_proto::ClientId;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{Entry, Imported, Importer, Material, MaterialError, Refused};

/// Imports under way at once: each waits for the key service twice.
const AT_ONCE: usize = 8;

/// Why a line was not imported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Not JSON, an unknown or missing field, or a wrong type. Nothing of the line is repeated, since it may be a secret.
    #[error(
        "expected {{\"client_id\": …, \"groups\": […], \"secret\" or \"bcrypt\": …}} (column {column})"
    )]
    Shape {
        /// Where it went wrong, from 1; 0 when that cannot be said.
        column: usize,
    },
    /// Not an id.
    #[error("`client_id`: {0}")]
    ClientId(keyturn_proto::Invalid),
    /// Both or neither.
    #[error("expected exactly one of `secret` and `bcrypt`")]
    OneSecret,
    /// The same client on an earlier line.
    #[error("this client is on an earlier line of the file")]
    Repeated,
    /// The secret or the hash.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// Judged, and not imported.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// What became of one line.
pub struct Report {
    /// From 1.
    pub line: usize,
    /// `None` when not even that could be read.
    pub client_id: Option<ClientId>,
    /// What the operator should know about the secret.
    pub warning: Option<&'static str>,
    /// What became of it.
    pub result: Result<Imported, LineError>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    client_id: String,
    groups: Vec<String>,
    secret: Option<Zeroizing<String>>,
    bcrypt: Option<Zeroizing<String>>,
}

impl Importer<'_> {
    /// Brings in every line, and reports each in the order of the file as soon as it is done. Empty lines are skipped.
    ///
    /// # Errors
    /// The report's own; what follows is not imported then.
    pub async fn import_lines<E>(
        &self,
        file: &[u8],
        mut report: impl FnMut(Report) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut seen = HashSet::new();
        let lines = file.split(|byte| *byte == b'\n').enumerate();
        let judged = lines
            .filter(|(_, line)| !line.trim_ascii().is_empty())
            .map(|(n, line)| (n + 1, read(line, &mut seen)));
        let mut reports = futures::stream::iter(judged)
            .map(|(line, (client_id, entry))| async move {
                Report {
                    line,
                    client_id,
                    warning: entry.as_ref().ok().and_then(|it| it.material.warning()),
                    result: match entry {
                        Ok(entry) => self.import(&entry).await.map_err(LineError::from),
                        Err(error) => Err(error),
                    },
                }
            })
            .buffered(AT_ONCE);
        while let Some(next) = reports.next().await {
            report(next)?;
        }
        Ok(())
    }
}

/// The line's client as far as it could be read, and the entry.
fn read(line: &[u8], seen: &mut HashSet<ClientId>) -> (Option<ClientId>, Result<Entry, LineError>) {
    let line: Line = match serde_json::from_slice(line) {
        Ok(line) => line,
        Err(error) => {
            let column = error.column();
            return (None, Err(LineError::Shape { column }));
        }
    };
    let client_id: ClientId = match line.client_id.parse() {
        Ok(id) => id,
        Err(error) => return (None, Err(LineError::ClientId(error))),
    };
    let first = seen.insert(client_id.clone());
    let material = match (line.secret, line.bcrypt) {
        _ if !first => Err(LineError::Repeated),
        (Some(secret), None) => Material::plain(secret).map_err(LineError::from),
        (None, Some(hash)) => Material::bcrypt(&hash).map_err(LineError::from),
        (Some(_), Some(_)) | (None, None) => Err(LineError::OneSecret),
    };
    let entry = material.map(|material| Entry {
        client_id: client_id.clone(),
        groups: line.groups,
        material,
    });
    (Some(client_id), entry)
}
