//! What the process gives up so that its memory stays its own.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Why the process could not be closed off.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {source}")]
pub struct HardeningError {
    what: &'static str,
    source: rustix::io::Errno,
}

/// No core files, no debugger of the same user, no `/proc/self/mem` for others. Done first, before any secret is read.
pub fn close_off_memory() -> Result<(), HardeningError> {
    let failed = |what| move |source| HardeningError { what, source };
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(failed("forbid core files"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(failed("make the process non-dumpable"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rustix::process::{dumpable_behavior, getrlimit};

    use super::*;

    #[test]
    fn memory_is_closed_off() {
        close_off_memory().unwrap();
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        assert_eq!(getrlimit(Resource::Core).current, Some(0));
    }
}
