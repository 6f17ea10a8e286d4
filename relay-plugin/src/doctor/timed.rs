//! Work with a deadline: rotations that should have moved on, and due work that nobody does.

use std::time::Duration;

use keyturn_proto::UnixMs;
use keyturn_store::{
    documents::{RotationDoc, RotationState},
    store::{Store, StoreError},
};

use super::{Report, Subject, ports::Running};

const CHECK: &str = "timed";
/// The core looks every few seconds, and tries what failed again within a minute.
const SLACK: Duration = Duration::from_secs(120);

pub(super) async fn check(
    subject: Subject<'_>,
    store: &dyn Store,
    running: Running,
    report: &mut Report,
) {
    if let Err(error) = look(subject, store, running, report).await {
        report.fail(
            CHECK,
            format!("rotations cannot be read: {error}"),
            "see the findings about the store",
        );
    }
}

async fn look(
    subject: Subject<'_>,
    store: &dyn Store,
    running: Running,
    report: &mut Report,
) -> Result<(), StoreError> {
    let before = report.findings.len();
    let active = store.active_rotations().await?;
    for rotation in &active {
        let Some(late) = late(rotation, subject.now) else {
            continue;
        };
        let RotationDoc {
            rotation_id,
            client_id,
            state,
            ..
        } = rotation;
        tell(
            format!(
                "rotation {rotation_id} of {client_id} has been stuck as {} for {}",
                word(*state),
                rounded(late)
            ),
            subject,
            running,
            report,
        );
    }
    let overdue = store.next_due().await?.map(|at| subject.now.since(at));
    if let Some(overdue) = overdue.filter(|overdue| *overdue > SLACK) {
        tell(
            format!("work has been due for {}", rounded(overdue)),
            subject,
            running,
            report,
        );
    }
    if report.clean_since(before) {
        report.ok(
            CHECK,
            format!("{} rotations under way, none of them stuck", active.len()),
        );
    }
    Ok(())
}

const fn word(state: RotationState) -> &'static str {
    match state {
        RotationState::Reserved => "reserved",
        RotationState::Prepared => "prepared",
        RotationState::QuorumMet => "quorum met",
        RotationState::Done => "done",
    }
}

/// By how much a rotation has missed the moment at which something had to happen.
fn late(rotation: &RotationDoc, now: UnixMs) -> Option<Duration> {
    let moment = match rotation.state {
        RotationState::Reserved => rotation.proof_expires_at,
        RotationState::Prepared => rotation.ack_deadline,
        RotationState::QuorumMet => rotation.not_before,
        RotationState::Done => return None,
    };
    Some(now.since(moment)).filter(|late| *late > SLACK)
}

/// Without a relay it waits for one; beside a running one it should not be there.
fn tell(what: String, subject: Subject<'_>, running: Running, report: &mut Report) {
    match running {
        Running::No => report.warn(
            CHECK,
            format!("{what}, and no keyturn is running"),
            format!("start it: {}", subject.command("serve")),
        ),
        Running::Yes => report.fail(
            CHECK,
            format!("{what}, although keyturn is running"),
            "see the log for \"to be tried again\", then systemctl restart keyturn: the start takes up what is left (docs/operations.md, \"Stuck rotation\")",
        ),
    }
}

fn rounded(by: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(by.as_secs()))
}
