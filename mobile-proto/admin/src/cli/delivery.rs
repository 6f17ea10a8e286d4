//! What happens with a delivered secret: shown once if somebody asks, acked, forgotten.

use keyturn_proto::notify::NotifyState;
use keyturn_proto::{Outcome, RotationId};

use super::args::{Ack, Delivery};
use super::error::CliError;
use super::output::moment;
use super::{Context, ask};
use crate::session::{Reply, WaitingSecret};

/// What the admin wants.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// Print it, then ack.
    Reveal,
    /// Ack, and let somebody else of the group use it.
    Discard,
    /// Leave it closed.
    Leave,
}

impl Context<'_> {
    pub(super) async fn ack(&mut self, ack: Ack) -> Result<(), CliError> {
        let Ack { rotation, delivery } = ack;
        if !(delivery.reveal || delivery.discard || self.output.interactive()) {
            return Err(CliError::Usage(
                "ack opens the secret for good: pass --reveal to see it, or --discard".to_owned(),
            ));
        }
        let waiting = self.session.waiting_secret(rotation.as_ref())?;
        self.deliver(waiting, &delivery).await
    }

    /// From the service's first answer to the end that was asked for.
    pub(super) async fn after_rotation(
        &mut self,
        reply: Reply,
        delivery: &Delivery,
    ) -> Result<(), CliError> {
        self.report(&reply.answer);
        // An idempotent repeat may be answered with the end.
        if let NotifyState::Done { outcome, .. } = reply.answer.body {
            return promoted(outcome);
        }
        let rotation = reply.action_id;
        if !(delivery.reveal || delivery.discard || self.output.interactive()) {
            self.output.note(&format!(
                "the secret stays closed; open it with: keyturn-admin ack {rotation} --reveal"
            ));
            return self.end(&rotation, delivery).await;
        }
        let waiting = {
            let _progress = self.output.progress("waiting for the secret");
            self.session.await_secret(&rotation, self.deadline).await?
        };
        self.deliver(waiting, delivery).await
    }

    /// Opens, shows, acks, and waits for the service's word.
    pub(super) async fn deliver(
        &mut self,
        waiting: WaitingSecret,
        delivery: &Delivery,
    ) -> Result<(), CliError> {
        let rotation = waiting.about.rotation_id.clone();
        self.announce(&waiting);
        let wish = self.wish(&waiting, delivery).await?;
        if wish == Wish::Leave {
            self.output.note(&format!(
                "left closed; open it with: keyturn-admin ack {rotation}"
            ));
            return Ok(());
        }
        {
            // Before it is opened: a secret that cannot be acked had better stay closed.
            let _progress = self.output.progress("waiting for the group to settle");
            self.session.ready(&waiting.group, self.deadline).await?;
        }
        let opened = self.session.open_secret(&waiting)?;
        if wish == Wish::Reveal {
            self.output
                .secret(&opened.notify.header, &opened.notify.secret);
        }
        let answer = {
            let progress = self.output.progress("sending the proof of arrival");
            let ack = self.session.ack(&opened, self.deadline).await?;
            drop(opened);
            progress.say("waiting for the service to count it");
            self.session
                .await_acked(&rotation, &ack, self.deadline)
                .await?
        };
        self.report(&answer);
        match answer.body {
            NotifyState::Done { outcome, .. } => promoted(outcome),
            _ => self.end(&rotation, delivery).await,
        }
    }

    pub(super) fn announce(&self, waiting: &WaitingSecret) {
        let about = &waiting.about;
        self.output.result(
            "delivered",
            waiting,
            &format!(
                "{}  a new secret of {} ({}) has arrived, valid from {}",
                about.rotation_id,
                about.client_id,
                about.version_id,
                moment(about.not_before)
            ),
        );
    }

    async fn wish(&self, waiting: &WaitingSecret, delivery: &Delivery) -> Result<Wish, CliError> {
        if delivery.reveal {
            return Ok(Wish::Reveal);
        }
        if delivery.discard {
            return Ok(Wish::Discard);
        }
        let question = format!(
            "Show the secret of {} now? It can be shown once. [y/N]",
            waiting.about.client_id
        );
        Ok(match ask(question).await?.as_str() {
            "y" | "Y" | "yes" => Wish::Reveal,
            _ => Wish::Leave,
        })
    }

    async fn end(&mut self, rotation: &RotationId, delivery: &Delivery) -> Result<(), CliError> {
        if !delivery.wait {
            return Ok(());
        }
        let done = {
            let _progress = self.output.progress("waiting for the switch-over");
            self.session.await_done(rotation, self.deadline).await?
        };
        self.report(&done);
        match done.body {
            NotifyState::Done { outcome, .. } => promoted(outcome),
            _ => Ok(()),
        }
    }
}

const fn promoted(outcome: Outcome) -> Result<(), CliError> {
    match outcome {
        Outcome::Promoted => Ok(()),
        other => Err(CliError::Outcome(other)),
    }
}
