//! What to make of a change that is found done when it is repeated, because the outcome of its first try was unknown.
//!
//! To the store our repeat looks like somebody's second delivery, or like something that comes too late, and that is what it answers. But it writes nothing, and so leaves
//! nothing in doubt, for a change that was done or overtaken before: what is found done was done by our own first try. Whoever made that one has work left to do (a request
//! to queue, a device to tell), and no reason to refuse anything.

use keyturn_proto::device::DeviceId;
use keyturn_store::devices::{Answer, Change, DeviceDoc, Stage};
use keyturn_store::store::StoreError;

use super::flow::Devices;

impl Devices {
    /// What the first try of `change` has answered, as far as the document still tells; otherwise `again`, the answer to its repeat.
    pub(super) async fn first_answer(
        &self,
        device: &DeviceId,
        change: &Change,
        again: Answer,
    ) -> Result<Answer, StoreError> {
        let doc = self.parts.devices.device(device).await?;
        Ok(doc
            .and_then(|doc| first_answer(change, doc, &again))
            .unwrap_or(again))
    }
}

fn first_answer(change: &Change, doc: DeviceDoc, again: &Answer) -> Option<Answer> {
    let issue = doc.outstanding.as_ref();
    match change {
        // In no queue yet: until then nobody begins it.
        Change::Ask { nonce, owner, .. } => issue
            .is_some_and(|it| it.nonce == *nonce && it.owner == *owner && it.stage == Stage::Asked)
            .then(|| Answer::Done(Box::new(doc))),
        Change::Result {
            nonce, ok: true, ..
        } => {
            let current = doc.current.as_ref().filter(|held| held.nonce == *nonce)?;
            let proven = current.proven;
            Some(Answer::Confirmed {
                proven,
                doc: Box::new(doc),
            })
        }
        // Against an `ok` it is nothing that we did.
        Change::Result { ok: false, .. } | Change::NotSent { .. } => {
            (*again == Answer::Stale).then(|| Answer::Done(Box::new(doc)))
        }
        // The caller knows under which nonce the device waits, where the document does not any more.
        Change::Expire { attempt, .. } => match issue.filter(|issue| issue.attempt == *attempt) {
            None => Some(Answer::Repeat),
            Some(issue) => (issue.stage == Stage::Unconfirmed)
                .then(|| Answer::Interrupted(issue.nonce.clone())),
        },
        Change::Ping { nonce, .. } => {
            (doc.ping.as_ref() == Some(nonce)).then(|| Answer::Done(Box::new(doc)))
        }
        _ => None,
    }
}
