//! The commands that ask the service for something.

use keyturn_proto::notify::{NotifyState, ServiceNotify};
use keyturn_proto::request::Bearer;
use keyturn_proto::{Action, ClientId, Params, VersionId};
use serde_json::json;
use tokio::time::Instant;

use super::args::{Authorisation, Emergency, Proof, Revoke, Rotate, Status, Withdraw};
use super::error::CliError;
use super::output::moment;
use super::{Context, ask};
use crate::clock::{Clock as _, SystemClock};
use crate::proof::{CommandProof, FileProof, ProofError, ProofSource};
use crate::session::{Reply, RequestError, RequestSpec};
use crate::transport::printable;

impl Context<'_> {
    pub(super) async fn rotate(&mut self, rotate: Rotate) -> Result<(), CliError> {
        let Rotate {
            client,
            auth: Authorisation { reason, proof },
            grace,
            not_before,
            delivery,
        } = rotate;
        let params = Params {
            rotation_reason: reason,
            not_before: not_before.map(|when| when.resolve(SystemClock.now())),
            grace_duration_ms: grace
                .map(|grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX)),
            ..Params::default()
        };
        let reply = self
            .request(Action::Rotation, client, params, proof)
            .await?;
        self.after_rotation(reply, &delivery).await
    }

    pub(super) async fn emergency(&mut self, emergency: Emergency) -> Result<(), CliError> {
        let Emergency {
            client,
            auth: Authorisation { reason, proof },
            delivery,
        } = emergency;
        let params = because(reason);
        let reply = self
            .request(Action::Emergency, client, params, proof)
            .await?;
        self.after_rotation(reply, &delivery).await
    }

    pub(super) async fn cancel(&mut self, withdraw: Withdraw) -> Result<(), CliError> {
        self.withdraw(Action::Cancel, withdraw).await
    }

    pub(super) async fn rollback(&mut self, withdraw: Withdraw) -> Result<(), CliError> {
        self.withdraw(Action::Rollback, withdraw).await
    }

    async fn withdraw(&mut self, action: Action, withdraw: Withdraw) -> Result<(), CliError> {
        let Withdraw {
            client,
            rotation,
            auth: Authorisation { reason, proof },
        } = withdraw;
        let params = Params {
            target_rotation_id: rotation,
            ..because(reason)
        };
        let reply = self.request(action, client, params, proof).await?;
        self.report(&reply.answer);
        Ok(())
    }

    pub(super) async fn revoke(&mut self, revoke: Revoke) -> Result<(), CliError> {
        let Revoke {
            client,
            version,
            auth: Authorisation { reason, proof },
        } = revoke;
        let params = Params {
            version_id: version,
            ..because(reason)
        };
        let reply = self.request(Action::Revoke, client, params, proof).await?;
        self.report(&reply.answer);
        Ok(())
    }

    pub(super) async fn status(&mut self, status: Status) -> Result<(), CliError> {
        let Status { client, proof } = status;
        let reply = self
            .request(Action::Status, client, Params::default(), proof)
            .await?;
        self.report(&reply.answer);
        Ok(())
    }

    async fn request(
        &mut self,
        action: Action,
        client: ClientId,
        params: Params,
        proof: Proof,
    ) -> Result<Reply, CliError> {
        let Proof {
            totp,
            proof_command,
            proof_file,
            group,
            id,
        } = proof;
        let group = self.session.find_group(group.as_deref())?;
        let source = self.proof_source(proof_command, proof_file)?;
        {
            let _progress = self.output.progress("waiting for the group to settle");
            self.session.ready(&group, self.deadline).await?;
        }
        // Asked for as late as can be: a code lives for thirty seconds.
        let totp = match totp.as_deref() {
            Some("-") => Some(ask("TOTP code:".to_owned()).await?),
            _ => totp,
        }
        .map(Bearer::new);
        let _progress = self.output.progress("asking the service");
        let spec = RequestSpec {
            action,
            client,
            params,
            action_id: id,
            group,
            totp,
        };
        Ok(self
            .session
            .request(spec, source.as_ref(), self.deadline)
            .await?)
    }

    fn proof_source(
        &self,
        command: Option<String>,
        file: Option<std::path::PathBuf>,
    ) -> Result<Box<dyn ProofSource>, CliError> {
        let timeout = self.deadline.saturating_duration_since(Instant::now());
        if let Some(path) = file {
            return Ok(Box::new(FileProof { path, timeout }));
        }
        let command = command
            .or_else(|| self.config.proof_command.clone())
            .ok_or(RequestError::Proof(ProofError::NotConfigured))?;
        let command = command.split_whitespace().map(str::to_owned).collect();
        Ok(Box::new(CommandProof { command, timeout }))
    }

    /// One report of the service, as a result.
    pub(super) fn report(&self, notify: &ServiceNotify) {
        let line = match &notify.body {
            NotifyState::Accepted {
                version_id,
                ack_deadline,
            } => format!(
                "accepted{}{}",
                version(" as version ", *version_id),
                ack_deadline
                    .map(|at| format!("; acks are awaited until {}", moment(at)))
                    .unwrap_or_default(),
            ),
            NotifyState::Acked { acks, required, .. } => format!("acked: {acks} of {required}"),
            NotifyState::Done {
                outcome,
                current_version,
                previous_version,
                grace_until,
            } => format!(
                "{}{}{}{}",
                outcome.as_str(),
                version("; current ", *current_version),
                version("; previous ", *previous_version),
                grace_until
                    .map(|at| format!(" until {}", moment(at)))
                    .unwrap_or_default(),
            ),
            NotifyState::Retired { version_id } => format!("version {version_id} retired"),
            NotifyState::Status {
                client_status,
                current_version,
                previous_version,
                grace_until,
                active_rotation,
            } => format!(
                "{}{}{}{}{}",
                printable(client_status),
                version("; current ", *current_version),
                version("; previous ", *previous_version),
                grace_until
                    .map(|at| format!(" until {}", moment(at)))
                    .unwrap_or_default(),
                active_rotation
                    .as_ref()
                    .map(|id| format!("; rotation {id} is active"))
                    .unwrap_or_default(),
            ),
            NotifyState::Refused { error, .. } => format!("refused: {error}"),
        };
        let id = notify
            .action_id
            .as_ref()
            .map(|id| format!("{id}  "))
            .unwrap_or_default();
        self.output
            .result("report", json!(notify), &format!("{id}{line}"));
    }
}

fn because(reason: String) -> Params {
    Params {
        rotation_reason: reason,
        ..Params::default()
    }
}

fn version(before: &str, id: Option<VersionId>) -> String {
    id.map(|id| format!("{before}{id}")).unwrap_or_default()
}
