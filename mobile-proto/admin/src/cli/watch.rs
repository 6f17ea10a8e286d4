//! `watch`: follow the groups.

use keyturn_proto::Npub;
use serde_json::json;
use tokio::time::Instant;

use super::Context;
use super::args::{Delivery, Watch};
use super::error::CliError;
use crate::session::Update;

impl Context<'_> {
    pub(super) async fn watch(&mut self, watch: Watch) -> Result<(), CliError> {
        let Watch { reveal, discard } = watch;
        let delivery = (reveal || discard).then_some(Delivery {
            reveal,
            discard,
            wait: false,
        });
        // What waits since earlier is not reported again; what came with the first sync is reported, and waits as well.
        let mut told = Vec::new();
        for waiting in self.session.waiting_secrets()? {
            told.push(waiting.clone());
            match &delivery {
                Some(delivery) => self.deliver(waiting, delivery).await?,
                None => self.announce(&waiting),
            }
        }
        self.output.note("watching; Ctrl-C ends it");
        while Instant::now() < self.deadline {
            let Some(update) = self.session.next_update(self.deadline).await? else {
                break;
            };
            match (update, &delivery) {
                (Update::Secret(waiting), _) if told.contains(&waiting) => {}
                (Update::Secret(waiting), Some(delivery)) => {
                    self.deliver(waiting, delivery).await?
                }
                (update, _) => self.show(&update),
            }
        }
        Ok(())
    }

    fn show(&self, update: &Update) {
        match update {
            Update::Report { notify, .. } => self.report(notify),
            Update::Joined { group, by } => self.output.result(
                "joined",
                json!({ "group": group, "by": by }),
                &format!("joined group {group}, invited by {by}"),
            ),
            Update::Invited(welcome) => self.output.result(
                "invitation",
                welcome,
                &format!(
                    "invited by {from}; accept with: keyturn-admin group join --from {from}",
                    from = welcome.from
                ),
            ),
            Update::Epoch {
                group,
                epoch,
                added,
                removed,
                evicted,
            } => self.output.result(
                "epoch",
                json!({ "group": group, "epoch": epoch, "added": added, "removed": removed, "evicted": evicted }),
                &format!(
                    "group {group} is in epoch {epoch}{}{}{}",
                    listed("; joined: ", added),
                    listed("; removed: ", removed),
                    if *evicted { "; you were removed" } else { "" },
                ),
            ),
            Update::Request {
                group,
                from,
                action,
                client,
                action_id,
            } => self.output.result(
                "request",
                json!({ "group": group, "from": from, "action": action, "client_id": client, "action_id": action_id }),
                &format!("{action_id}  {from} asks for {} of {client}", action.as_str()),
            ),
            Update::Ack { group, from, ack } => self.output.result(
                "ack",
                json!({ "group": group, "from": from, "ack": ack }),
                &format!("{}  {from} acked", ack.rotation_id),
            ),
            Update::Alarm { group, what } => self.output.result(
                "alarm",
                json!({ "group": group, "what": what }),
                &format!("ALARM in group {group}: {what}"),
            ),
            Update::Secret(waiting) => self.announce(waiting),
        }
    }
}

fn listed(before: &str, npubs: &[Npub]) -> String {
    if npubs.is_empty() {
        return String::new();
    }
    let names: Vec<String> = npubs.iter().map(Npub::to_string).collect();
    format!("{before}{}", names.join(", "))
}
