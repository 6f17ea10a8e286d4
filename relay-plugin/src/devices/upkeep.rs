//! What is done by the clock: destruction, orphans, deadlines, pings. One relay does it at a time, under a lease; what one relay itself has just caused it
//! also carries out itself, at once.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use keyturn_proto::UnixMs;
use keyturn_proto::device::{DeviceError, DeviceNonce};
use keyturn_store::devices::{Answer, Change, DeviceDoc, Doomed, Outstanding, Stage, Unresolved};
use keyturn_store::store::StoreError;
use tokio_util::sync::CancellationToken;

use super::flow::Devices;
use super::issuer::{Accessor, Destroyed, Found, Intent, IssuerError, NonceHash, Reason, RoleName};
use super::outgoing;
use super::settings::jittered;
use crate::crash;
use crate::metrics as names;

/// The lease of whoever sweeps.
const LEASE: &str = "devices";
/// How long it is held without being renewed.
const LEASE_TTL: Duration = Duration::from_secs(30);
/// Documents taken from the store at once.
const BATCH: usize = 256;
/// When a device is to ask again whose request was interrupted.
const AGAIN: Duration = Duration::from_secs(2);
/// First and longest pause between attempts to destroy one secret_id.
const RETRY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

impl Devices {
    /// Ends what this relay was at when it was stopped: nobody else works on it, and the devices wait.
    pub(super) async fn recover(self: &Arc<Self>) {
        loop {
            let owner = &self.settings().owner;
            let docs = match self.parts.devices.devices_of(owner, BATCH).await {
                Ok(docs) => docs,
                Err(error) => {
                    tracing::warn!(%error, "unfinished device requests are left to their deadline");
                    return;
                }
            };
            let mut ended = 0;
            // The connection is up already, and what came over it since is no leftover.
            let ours = |doc: &&DeviceDoc| {
                let issue = doc.outstanding.as_ref();
                issue.is_some_and(|issue| issue.asked_at < self.began)
            };
            for doc in docs.iter().filter(ours) {
                ended += usize::from(self.expire(doc, true).await);
            }
            if docs.len() < BATCH || ended == 0 {
                break;
            }
        }
        self.due.notify_one();
    }

    pub(super) async fn upkeep(self: Arc<Self>, stopping: CancellationToken) {
        loop {
            match self.sweep(&stopping).await {
                Ok(()) => {}
                Err(error) => {
                    metrics::counter!(names::DEVICE_UPKEEP_FAILURES).increment(1);
                    tracing::warn!(%error, "the devices' due work could not be read");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(self.settings().sweep) => {}
                () = self.due.notified() => {}
                () = stopping.cancelled() => return,
            }
        }
    }

    /// Carries out everything that is due, if the lease is ours.
    async fn sweep(self: &Arc<Self>, stopping: &CancellationToken) -> Result<(), StoreError> {
        while !stopping.is_cancelled() {
            let ttl = u64::try_from(LEASE_TTL.as_millis()).unwrap_or(u64::MAX);
            let owner = &self.settings().owner;
            match self.parts.store.lease(LEASE, owner, ttl, self.now()).await {
                Ok(_) => {}
                Err(StoreError::Conflict { .. }) => return Ok(()),
                Err(error) => return Err(error),
            }
            let docs = self.parts.devices.devices_due(self.now(), BATCH).await?;
            let full = docs.len() == BATCH;
            self.look_for_orphans(&docs).await;
            stream::iter(&docs)
                .for_each_concurrent(self.settings().concurrency, |doc| self.look_after(doc))
                .await;
            if !full {
                break;
            }
        }
        Ok(())
    }

    async fn look_after(self: &Arc<Self>, doc: &DeviceDoc) {
        let now = self.now();
        if doc
            .outstanding
            .as_ref()
            .is_some_and(|issue| issue.deadline_at <= now)
        {
            self.expire(doc, false).await;
        }
        self.destroy_doomed(doc).await;
        if doc.ping_at.is_some_and(|at| at <= now) {
            self.invite(doc).await;
        }
    }

    /// Ends an outstanding issue whose time is over, and tells the device. Whether anything changed.
    async fn expire(&self, doc: &DeviceDoc, at_once: bool) -> bool {
        let Some(attempt) = doc.outstanding.as_ref().map(|issue| issue.attempt) else {
            return false;
        };
        let change = Change::Expire { attempt, at_once };
        match self.change(&doc.device_id, change).await {
            Ok(Answer::Interrupted(nonce)) => {
                let error = DeviceError::Interrupted;
                self.tell(&doc.device_id, &nonce, error, AGAIN);
                true
            }
            // Ended by a try of ours whose outcome was unknown; nobody has told the device.
            Ok(Answer::Repeat) => {
                let waits = |it: &&Outstanding| matches!(it.stage, Stage::Asked | Stage::Issuing);
                if let Some(issue) = doc.outstanding.as_ref().filter(waits) {
                    let error = DeviceError::Interrupted;
                    self.tell(&doc.device_id, &issue.nonce, error, AGAIN);
                }
                true
            }
            Ok(Answer::Done(_)) => true,
            Ok(_) => false,
            Err(error) => {
                self.failed(doc, &error);
                false
            }
        }
    }

    fn failed(&self, doc: &DeviceDoc, error: &StoreError) {
        metrics::counter!(names::DEVICE_UPKEEP_FAILURES).increment(1);
        tracing::warn!(device = %doc.device_id, %error, "a device's due work could not be recorded");
    }

    /// Destroys what `doc` dooms, beside the caller. Beyond a bound it is left to the next sweep.
    pub(super) fn tend_soon(self: &Arc<Self>, doc: &DeviceDoc) {
        if doc.doomed.is_empty() {
            return;
        }
        let Ok(permit) = Arc::clone(&self.tended).try_acquire_owned() else {
            return;
        };
        let (devices, doc) = (Arc::clone(self), doc.clone());
        tokio::spawn(async move {
            devices.destroy_doomed(&doc).await;
            drop(permit);
        });
    }

    async fn destroy_doomed(&self, doc: &DeviceDoc) {
        let now = self.now();
        for doomed in doc.doomed.iter().filter(|doomed| doomed.retry_at <= now) {
            crash::point(crash::Point::BeforeDestroy).await;
            let change = self.destroy(doomed, now).await;
            crash::point(crash::Point::AfterDestroy).await;
            if let Err(error) = self.change(&doc.device_id, change).await {
                self.failed(doc, &error);
            }
        }
    }

    async fn destroy(&self, doomed: &Doomed, now: UnixMs) -> Change {
        let accessor = doomed.accessor.clone();
        let failed = |why: &str| Change::DestroyFailed {
            accessor: accessor.clone(),
            why: why.to_owned(),
            retry_at: now.plus(backoff(doomed.failures)),
        };
        let (Ok(role), Ok(name)) = (doomed.role.parse(), doomed.accessor.parse::<Accessor>())
        else {
            return failed("not_nameable");
        };
        // Ours would call it gone while it lives on where it was made.
        let destroyed = if self.made(doomed.issuer.as_deref()) {
            self.parts.issuer.destroy(&role, &name).await
        } else {
            let why = Reason::AnotherIssuer;
            Err(IssuerError::Permanent { why })
        };
        let (word, change) = match destroyed {
            Ok(destroyed) => {
                tracing::info!(accessor = %name, why = doomed.why, "destroyed a secret_id");
                let now_gone = destroyed == Destroyed::Now;
                let word = if now_gone {
                    "destroyed"
                } else {
                    "already_gone"
                };
                (word, Change::Destroyed { accessor, now_gone })
            }
            Err(error) => {
                tracing::warn!(accessor = %name, reason = error.reason().word(), "a secret_id could not be destroyed");
                let why = error.reason();
                let word = if why == Reason::AnotherIssuer {
                    why.word()
                } else {
                    "failed"
                };
                (word, failed(why.word()))
            }
        };
        metrics::counter!(names::DEVICE_DESTROYED, "result" => word).increment(1);
        change
    }

    /// Whether the issuer that the configuration names now is the one that made something. Where that was not written down, the issuer itself tells by the accessor.
    fn made(&self, issuer: Option<&str>) -> bool {
        issuer.is_none_or(|issuer| issuer == self.parts.issuer.name())
    }

    /// Looks for what issues of unknown outcome have made: one pass per role, however many they are.
    async fn look_for_orphans(&self, docs: &[DeviceDoc]) {
        let now = self.now();
        let mut roles: BTreeMap<&str, Vec<(&DeviceDoc, &Unresolved)>> = BTreeMap::new();
        for doc in docs {
            for issue in doc.unresolved.iter().filter(|issue| issue.retry_at <= now) {
                roles.entry(&issue.role).or_default().push((doc, issue));
            }
        }
        for (role, issues) in roles {
            let ours = |(_, issue): &(&DeviceDoc, &Unresolved)| self.made(issue.issuer.as_deref());
            let (ours, others): (Vec<_>, Vec<_>) = issues.into_iter().partition(ours);
            let found = match &*ours {
                [] => Ok(Vec::new()),
                issues => self.find(role, issues).await,
            };
            let searched = ours.into_iter().map(|issue| (issue, found.as_deref()));
            let another = Reason::AnotherIssuer.word();
            let others = others.into_iter().map(|issue| (issue, Err(&another)));
            for ((doc, issue), found) in searched.chain(others) {
                let attempt = issue.attempt;
                let change = match found {
                    Ok(found) => {
                        let intent = intent(doc, issue);
                        let found = found.iter().filter(|found| found.intent == intent);
                        Change::Searched {
                            attempt,
                            accessors: found.map(|it| it.accessor.as_str().to_owned()).collect(),
                            began: now,
                            quiet: self.settings().orphan_wait,
                        }
                    }
                    Err(why) => Change::SearchFailed {
                        attempt,
                        why: (*why).to_owned(),
                        retry_at: now.plus(backoff(issue.failures)),
                    },
                };
                match self.change(&doc.device_id, change).await {
                    Ok(Answer::Done(doc)) => self.destroy_doomed(&doc).await,
                    Ok(_) => {}
                    Err(error) => self.failed(doc, &error),
                }
            }
        }
    }

    /// What lives of `issues`; otherwise why that could not be found out, a stable word.
    async fn find(
        &self,
        role: &str,
        issues: &[(&DeviceDoc, &Unresolved)],
    ) -> Result<Vec<Found>, &'static str> {
        let role: RoleName = role.parse().map_err(|_| "role_invalid")?;
        let intents: Vec<Intent> = issues
            .iter()
            .map(|(doc, issue)| intent(doc, issue))
            .collect();
        let known = self.known(role.as_str()).await.map_err(|error| {
            tracing::warn!(%error, "the known secret_ids could not be listed");
            "store"
        })?;
        let found = self.parts.issuer.find(&role, &intents, &known).await;
        found.map_err(|error| {
            let why = error.reason().word();
            tracing::warn!(%role, reason = why, "orphaned secret_ids could not be looked for");
            why
        })
    }

    /// Every accessor of `role` that a device's document names: they need not be looked at.
    async fn known(&self, role: &str) -> Result<Vec<Accessor>, StoreError> {
        let mut known = HashSet::new();
        let mut after = None;
        loop {
            let page = self.parts.devices.devices(after.as_ref(), BATCH).await?;
            for doc in &page {
                let held = doc.held().filter(|held| held.role == role);
                let named = held.map(|held| &held.accessor);
                let doomed = doc.doomed.iter().filter(|doomed| doomed.role == role);
                known.extend(
                    named
                        .chain(doomed.map(|doomed| &doomed.accessor))
                        .filter_map(|accessor| accessor.parse().ok()),
                );
            }
            match page.last() {
                Some(last) if page.len() == BATCH => after = Some(last.device_id.clone()),
                _ => return Ok(known.into_iter().collect()),
            }
        }
    }

    /// Twice as long with every ping that was missed, up to the schedule's interval: a device that is gone for good fills neither the trail nor the broker.
    fn pause_before_next_ping(&self, doc: &DeviceDoc) -> Duration {
        let settings = self.settings();
        let missed = doc.pings_missed + u32::from(doc.ping.is_some());
        let pause = settings.ping_retry.saturating_mul(1 << missed.min(16));
        jittered(pause.min(settings.interval), 0.5).min(jittered(settings.interval, 0.1))
    }

    async fn invite(&self, doc: &DeviceDoc) {
        let Ok(nonce) = DeviceNonce::generate() else {
            tracing::error!("the random generator failed");
            return;
        };
        let next_ping = self.now().plus(self.pause_before_next_ping(doc));
        let change = Change::Ping {
            nonce: nonce.clone(),
            next_ping,
        };
        match self.change(&doc.device_id, change).await {
            Ok(Answer::Done(_)) => {
                let expiry = self.settings().answer_expiry;
                let sent = outgoing::ping(&doc.device_id, &nonce, expiry)
                    .is_some_and(|message| self.parts.outlet.offer(message).is_ok());
                let word = if sent { "sent" } else { "lost" };
                metrics::counter!(names::DEVICE_PINGS, "result" => word).increment(1);
            }
            Ok(_) => {}
            Err(error) => self.failed(doc, &error),
        }
    }
}

fn intent(doc: &DeviceDoc, issue: &Unresolved) -> Intent {
    Intent {
        device: doc.device_id.to_string(),
        nonce: NonceHash::of(issue.nonce.as_str()),
    }
}

fn backoff(failures: u32) -> Duration {
    let pause = RETRY.0.saturating_mul(1 << failures.min(10));
    jittered(pause.min(RETRY.1), 0.2)
}
