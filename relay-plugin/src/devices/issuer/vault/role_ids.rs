//! The role_ids that were read. They are kept for a while: one changes only when somebody makes its role anew, or writes another one.
//!
//! Pure; time is told. What must always hold: whatever becomes of a role, nobody is given an id that was read longer than [`TTL`] ago.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::devices::issuer::RoleName;

/// How long an id is used without asking again.
pub(super) const TTL: Duration = Duration::from_secs(300);

#[derive(Default)]
pub(super) struct RoleIds(HashMap<RoleName, (Instant, String)>);

impl RoleIds {
    pub(super) fn known(&self, role: &RoleName, now: Instant) -> Option<&str> {
        let (asked, role_id) = self.0.get(role)?;
        (now < *asked + TTL).then_some(role_id)
    }

    /// What was said to somebody who asked at `asked`.
    pub(super) fn learn(&mut self, role: RoleName, role_id: String, asked: Instant) {
        self.0.insert(role, (asked, role_id));
    }

    pub(super) fn forget(&mut self, role: &RoleName) {
        self.0.remove(role);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_id_is_taken_up_when_the_runbook_says() {
        let (pump, valve): (RoleName, RoleName) =
            ("pump".parse().unwrap(), "valve".parse().unwrap());
        let began = Instant::now();
        let almost = began + Duration::from_secs(5 * 60) - Duration::from_millis(1);
        let then = began + Duration::from_secs(5 * 60);
        let mut ids = RoleIds::default();
        ids.learn(pump.clone(), "old".to_owned(), began);
        ids.learn(valve.clone(), "other".to_owned(), almost);
        assert_eq!(ids.known(&pump, began), Some("old"));
        assert_eq!(ids.known(&pump, almost), Some("old"));
        // Being used does not keep it.
        assert_eq!(ids.known(&pump, then), None);
        assert_eq!(ids.known(&valve, then), Some("other"));
        ids.learn(pump.clone(), "new".to_owned(), then);
        assert_eq!(ids.known(&pump, then), Some("new"));
        ids.forget(&pump);
        assert_eq!(ids.known(&pump, then), None);
        assert_eq!(ids.known(&valve, then), Some("other"));
        let runbook = include_str!("../../../../../docs/device-runbook.md");
        assert!(runbook.contains("Keyturn takes a changed `role_id` up within five minutes."));
    }
}
