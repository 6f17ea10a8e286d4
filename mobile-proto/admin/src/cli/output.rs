//! Where the program speaks: results to stdout, everything else to stderr. With `--json` stdout carries one object per line.
//!
//! What must hold: a client secret leaves through [`Output::secret`] and nowhere else; texts of other people are made printable before they
//! reach a terminal.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use keyturn_proto::notify::NotifyHeader;
use keyturn_proto::{Secret, UnixMs};
use serde::Serialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::exit::Exit;
use crate::transport::printable;

/// The program's mouth.
pub struct Output {
    json: bool,
    interactive: bool,
}

impl Output {
    /// `json`: machine-readable, no progress.
    #[must_use]
    pub fn new(json: bool) -> Self {
        let interactive =
            !json && std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        Self { json, interactive }
    }

    /// Whether a person can be asked.
    #[must_use]
    pub const fn interactive(&self) -> bool {
        self.interactive
    }

    /// One result: the object for scripts, or the line for people.
    pub fn result(&self, event: &str, fields: impl Serialize, line: &str) {
        if self.json {
            let mut object = match serde_json::to_value(fields) {
                Ok(Value::Object(object)) => object,
                _ => serde_json::Map::new(),
            };
            object.insert("event".to_owned(), json!(event));
            self.line(&Value::Object(object).to_string());
        } else {
            self.line(line);
        }
    }

    /// An error, to stderr; with `--json` also as the last object on stdout.
    pub fn error(&self, exit: Exit, message: &str) {
        let message = printable(message);
        if self.json {
            let object = json!({ "event": "error", "exit": exit as u8, "message": message });
            self.line(&object.to_string());
        }
        eprintln!("keyturn-admin: {message}");
    }

    /// A remark, to stderr; nothing with `--json`.
    pub fn note(&self, text: &str) {
        if !self.json {
            eprintln!("{text}");
        }
    }

    /// Prints a secret, once, from a buffer that is wiped. For people the bare value stands on a line of its own on stdout, so that
    /// `| pbcopy` and the like work.
    pub fn secret(&self, header: &NotifyHeader, secret: &Secret) {
        let mut line = Zeroizing::new(Vec::with_capacity(512));
        if self.json {
            // Ids are free of quotes' and controls' danger only after JSON encoding; the secret is base64url and needs none.
            let prefix = json!({
                "event": "secret", "client_id": header.client_id, "version_id": header.version_id, "rotation_id": header.rotation_id,
            })
            .to_string();
            line.extend_from_slice(prefix.trim_end_matches('}').as_bytes());
            line.extend_from_slice(b",\"secret\":\"");
            line.extend_from_slice(secret.expose().as_bytes());
            line.extend_from_slice(b"\"}\n");
        } else {
            eprintln!(
                "secret of {} ({}), shown this once:",
                header.client_id, header.version_id
            );
            line.extend_from_slice(secret.expose().as_bytes());
            line.push(b'\n');
        }
        // Flushed at once. The standard library's own line buffer is out of reach: the threat model lists it.
        let mut stdout = std::io::stdout().lock();
        let _ = stdout.write_all(&line).and_then(|()| stdout.flush());
    }

    /// A spinner on stderr while something is awaited; invisible with `--json` or without a terminal.
    #[must_use]
    pub fn progress(&self, text: &str) -> Progress {
        let bar = if self.json {
            ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden())
        } else {
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
        };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} [{elapsed}]") {
            bar.set_style(style);
        }
        bar.set_message(text.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Progress(bar)
    }

    fn line(&self, text: &str) {
        // A closed pipe ends the reader's interest, not the operation.
        let mut stdout = std::io::stdout().lock();
        let _ = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    }
}

/// Gone from the screen when dropped.
pub struct Progress(ProgressBar);

impl Progress {
    /// What is awaited now.
    pub fn say(&self, text: &str) {
        self.0.set_message(text.to_owned());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// RFC 3339 in UTC, for people.
#[must_use]
pub fn moment(at: UnixMs) -> String {
    std::time::UNIX_EPOCH
        .checked_add(Duration::from_millis(at.0))
        // Past the year 9999 the formatter has no answer; such a value is a mistake and shown as the number it is.
        .filter(|_| at.0 < 253_402_300_800_000)
        .map_or_else(
            || format!("{} ms", at.0),
            |time| humantime::format_rfc3339_seconds(time).to_string(),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_rfc_3339_and_never_panic() {
        assert_eq!(moment(UnixMs(1_769_860_800_000)), "2026-01-31T12:00:00Z");
        assert_eq!(moment(UnixMs(u64::MAX)), format!("{} ms", u64::MAX));
    }
}
