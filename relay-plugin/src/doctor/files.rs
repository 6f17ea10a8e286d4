//! Who may read and write a file, for all checks.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use super::Report;

/// A path as one word of a shell command.
pub(super) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%:,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The permission bits.
pub(super) fn mode(metadata: &Metadata) -> u32 {
    metadata.mode() & 0o7777
}

/// The command that makes a file its owner's alone.
pub(super) fn chmod_600(path: &Path) -> String {
    format!("chmod 600 {}", quoted(path))
}

/// `None` when there is no such file yet.
pub(super) fn metadata(path: &Path) -> io::Result<Option<Metadata>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a file can be opened by this process without leaving things behind that the service could then not open: only as the file's owner.
pub(super) fn ours(
    check: &'static str,
    path: &Path,
    metadata: &Metadata,
    report: &mut Report,
) -> bool {
    if metadata.uid() == rustix::process::geteuid().as_raw() {
        return true;
    }
    let owner = metadata.uid();
    report.warn(
        check,
        format!(
            "{} belongs to user {owner}, so it was not opened",
            path.display()
        ),
        format!("sudo -u '#{owner}' keyturn doctor --config FILE"),
    );
    false
}

/// A database that the first start makes: whether its directory lets it. True when the file is there.
pub(super) fn there_or_possible(
    check: &'static str,
    what: &str,
    path: &Path,
    report: &mut Report,
) -> Option<Metadata> {
    match metadata(path) {
        Ok(Some(metadata)) if metadata.is_file() => return Some(metadata),
        Ok(Some(_)) => {
            report.fail(
                check,
                format!("{} is not a file", path.display()),
                "name a file in the configuration",
            );
            return None;
        }
        Err(error) => {
            report.fail(
                check,
                format!("{} cannot be looked at: {error}", path.display()),
                "let the service's user into its directory",
            );
            return None;
        }
        Ok(None) => {}
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if directory.is_dir() {
        report.warn(
            check,
            format!("{what} {} does not exist yet", path.display()),
            "nothing to do before the first start, which makes it; later on it means that it was lost",
        );
    } else {
        report.fail(
            check,
            format!(
                "the directory of {what} does not exist: {}",
                directory.display()
            ),
            format!("install -d -m 700 {}", quoted(directory)),
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_one_word() {
        assert_eq!(quoted(Path::new("/etc/keyturn.toml")), "/etc/keyturn.toml");
        assert_eq!(quoted(Path::new("/a b/$(x)")), "'/a b/$(x)'");
        assert_eq!(quoted(Path::new("it's")), r"'it'\''s'");
    }
}
