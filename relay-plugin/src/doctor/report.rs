//! Findings, and how they are shown.

use std::io::{self, Write};

use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// In order.
    Ok,
    /// Not looked at: only somebody else can.
    Skipped,
    /// Works, and should be looked at.
    Warn,
    /// Does not work, or is not safe.
    Fail,
}

impl Level {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Skipped => "skip",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which part: `config`, `secrets`, `relay`, `ports`, `clock`, `store`, `registry`, `timed`, `mac`, `mls`, `issuer`, `devices`, `mqtt`.
    pub check: &'static str,
    /// How bad.
    pub level: Level,
    /// What was found.
    pub what: String,
    /// How to mend it, or where to look; a command wherever there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

/// All findings, in the order in which they were made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The findings.
    pub findings: Vec<Finding>,
}

impl Report {
    pub(super) fn ok(&mut self, check: &'static str, what: impl Into<String>) {
        self.add(check, Level::Ok, what.into(), None);
    }

    /// What was not looked at, and who can.
    pub(super) fn skipped(
        &mut self,
        check: &'static str,
        what: impl Into<String>,
        instead: impl Into<String>,
    ) {
        self.add(check, Level::Skipped, what.into(), Some(instead.into()));
    }

    pub(super) fn warn(
        &mut self,
        check: &'static str,
        what: impl Into<String>,
        mend: impl Into<String>,
    ) {
        self.add(check, Level::Warn, what.into(), Some(mend.into()));
    }

    pub(super) fn fail(
        &mut self,
        check: &'static str,
        what: impl Into<String>,
        mend: impl Into<String>,
    ) {
        self.add(check, Level::Fail, what.into(), Some(mend.into()));
    }

    fn add(&mut self, check: &'static str, level: Level, what: String, mend: Option<String>) {
        self.findings.push(Finding {
            check,
            level,
            what,
            mend,
        });
    }

    /// Whether anything was found since there were `before` findings that is not in order.
    pub(super) fn clean_since(&self, before: usize) -> bool {
        let since = self.findings.iter().skip(before);
        since
            .into_iter()
            .all(|finding| finding.level <= Level::Skipped)
    }

    /// How many findings of a level there are.
    #[must_use]
    pub fn count(&self, level: Level) -> usize {
        let of = |finding: &&Finding| finding.level == level;
        self.findings.iter().filter(of).count()
    }

    /// For people: a line per finding, and below it how to mend it.
    ///
    /// # Errors
    /// The writer's.
    pub fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        for finding in &self.findings {
            let Finding {
                check,
                level,
                what,
                mend,
            } = finding;
            writeln!(out, "{:<5} {check:<9} {what}", level.word())?;
            if let Some(mend) = mend {
                let word = match level {
                    Level::Skipped => "check",
                    Level::Ok | Level::Warn | Level::Fail => "mend",
                };
                writeln!(out, "{:>16}{word}: {mend}", "")?;
            }
        }
        let (fails, warns) = (self.count(Level::Fail), self.count(Level::Warn));
        write!(out, "{fails} to mend, {warns} to look at")?;
        match self.count(Level::Skipped) {
            0 => writeln!(out),
            skipped => writeln!(out, ", {skipped} not checked"),
        }
    }

    /// For machines: `{"ok": …, "findings": […]}` on one line.
    ///
    /// # Errors
    /// The writer's.
    pub fn write_json(&self, out: &mut dyn Write) -> io::Result<()> {
        let ok = self.count(Level::Fail) == 0;
        let document = serde_json::json!({ "ok": ok, "findings": self.findings });
        writeln!(out, "{document}")
    }
}
