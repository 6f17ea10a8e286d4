//! A document that does not read as what it is, met by somebody who looks through what belongs to many: it is set aside with an alarm, and the others go on.
//!
//! What must always hold: only whoever looks through many may set one aside. Who asks for that very document is told that it is damaged, and so is whoever
//! judges a whole collection before writing to it.

use crate::metrics::SET_ASIDE;

/// Counts and logs it. The id is what somebody needs to mend it; the content is told to nobody.
pub(crate) fn set_aside(what: &'static str, id: &str) {
    metrics::counter!(SET_ASIDE, "what" => what).increment(1);
    let id: String = id.chars().take(SHOWN).collect();
    tracing::error!(
        kind = what,
        ?id,
        "ALARM: a stored document cannot be read; it is set aside, and nothing is done about it until it is mended"
    );
}

/// Most characters of an id in the log: whoever damaged the document may have named it as well.
const SHOWN: usize = 100;
