//! Issuing one secret_id, plain or wrapped, and holding the answer to what was asked.

use std::time::Duration;

use super::client::Client;
use super::transport::{Call, Failure};
use super::wire::{self, Envelope, IssueBody, Metadata, SecretId, WrapInfo};
use crate::devices::issuer::{
    Accessor, Credential, CredentialText, Intent, IssueRequest, Issued, IssuerError, Reason,
};

impl Client {
    pub(super) async fn issue(&self, request: &IssueRequest<'_>) -> Result<Issued, IssuerError> {
        let role_id = self
            .role_id(request.role)
            .await
            .map_err(Failure::harmless)?;
        let call = self.issue_call(request).map_err(Failure::harmless)?;
        let answer = self.call("issue", &call).await.map_err(Failure::making)?;
        if answer.status.as_u16() == 404 {
            self.forget_role_id(request.role);
        }
        let answer = answer.good().map_err(Failure::making)?;
        // From here on a secret_id exists.
        let Envelope {
            data, wrap_info, ..
        } = wire::envelope::<SecretId>(&answer).map_err(Failure::making)?;
        let (credential, accessor, ttl) = match (request.wrap_ttl, wrap_info, data) {
            (None, None, Some(plain)) => self.plain(request, plain).await?,
            (Some(_), Some(wrapped), None) => self.wrapped(request, &call, wrapped).await?,
            // Asked to wrap, and given in the clear: this server cannot.
            (Some(_), None, Some(plain)) => {
                let accessor = accessor(&plain.secret_id_accessor)?;
                return Err(self
                    .not_as_asked(request, &accessor, Reason::Unsupported)
                    .await);
            }
            _ => return Err(Failure::garbled().making()),
        };
        Ok(Issued {
            role_id,
            credential,
            accessor,
            ttl,
        })
    }

    fn issue_call(&self, request: &IssueRequest<'_>) -> Result<Call, Failure> {
        let blocks: Vec<String> = request.cidrs.iter().map(ToString::to_string).collect();
        let metadata = serde_json::to_string(&Metadata {
            device: request.device,
            nonce_sha256: request.nonce.as_str(),
            issued_by: &self.settings.instance,
        })
        .map_err(|_| Failure::permanent(Reason::Rejected))?;
        let body = wire::body(&IssueBody {
            ttl: request.ttl.as_secs().max(1),
            num_uses: (request.num_uses > 0).then_some(request.num_uses),
            metadata: &metadata,
            cidr_list: &blocks,
            token_bound_cidrs: &blocks,
        })?;
        Ok(Call {
            wrap_ttl: request.wrap_ttl,
            ..Call::post(self.role_path(request.role, "secret-id"), body)
        })
    }

    async fn plain(
        &self,
        request: &IssueRequest<'_>,
        plain: SecretId,
    ) -> Result<(Credential, Accessor, Duration), IssuerError> {
        let accessor = accessor(&plain.secret_id_accessor)?;
        let ttl = plain.secret_id_ttl.map_or(request.ttl, Duration::from_secs);
        let asked = Duration::from_secs(request.ttl.as_secs().max(1));
        // 0 means without an end, and any number of uses.
        let in_time = !ttl.is_zero() && ttl <= asked;
        let uses = plain.secret_id_num_uses.unwrap_or(request.num_uses);
        let limited = request.num_uses == 0 || (1..=request.num_uses).contains(&uses);
        if !in_time || !limited {
            return Err(self
                .not_as_asked(request, &accessor, Reason::Rejected)
                .await);
        }
        let text = CredentialText::new(plain.secret_id);
        Ok((Credential::SecretId(text), accessor, ttl))
    }

    async fn wrapped(
        &self,
        request: &IssueRequest<'_>,
        call: &Call,
        wrapped: WrapInfo,
    ) -> Result<(Credential, Accessor, Duration), IssuerError> {
        // Somebody who answers in Vault's place could wrap something of his own.
        if wrapped.creation_path.is_some_and(|path| path != call.path) {
            return Err(Failure::garbled().making());
        }
        let accessor = match wrapped.wrapped_accessor.filter(|text| !text.is_empty()) {
            Some(text) => accessor(&text)?,
            None => self.accessor_of(request).await?,
        };
        let ttl = match wrapped.ttl {
            0 => request.wrap_ttl.unwrap_or_default(),
            seconds => Duration::from_secs(seconds),
        };
        let token = CredentialText::new(wrapped.token);
        // The answer itself is wrapped, so what was asked for has to do.
        Ok((Credential::Wrapped { token, ttl }, accessor, request.ttl))
    }

    /// Older servers do not say which secret_id they have wrapped.
    async fn accessor_of(&self, request: &IssueRequest<'_>) -> Result<Accessor, IssuerError> {
        let intent = Intent {
            device: request.device.to_owned(),
            nonce: request.nonce.clone(),
        };
        let found = self.find(request.role, &[intent], &[]).await;
        let found = found.map_err(|failure| IssuerError::InDoubt {
            why: failure.why,
            after: failure.after,
        })?;
        match <[_; 1]>::try_from(found) {
            Ok([one]) => Ok(one.accessor),
            Err(_) => Err(Failure::garbled().making()),
        }
    }

    /// Takes back what must not be handed out.
    async fn not_as_asked(
        &self,
        request: &IssueRequest<'_>,
        accessor: &Accessor,
        why: Reason,
    ) -> IssuerError {
        match self.destroy(request.role, accessor).await {
            Ok(_) => IssuerError::Permanent { why },
            Err(failure) => IssuerError::InDoubt {
                why,
                after: failure.after,
            },
        }
    }
}

fn accessor(text: &str) -> Result<Accessor, IssuerError> {
    text.parse().map_err(|_| Failure::garbled().making())
}
