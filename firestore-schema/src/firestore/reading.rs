//! Reading one moment: the first read is of the newest state, and every further one of that same moment (`read_time`), so that what is judged was true together.
//! Nothing is locked. What was read is remembered with its update time, which the commit then demands.

use std::collections::{BTreeMap, BTreeSet};

use firestore::gcloud_sdk::google::firestore::v1::batch_get_documents_response::Result as GetResult;
use firestore::gcloud_sdk::google::firestore::v1::{
    BatchGetDocumentsRequest, Document as Wire, RunQueryRequest, batch_get_documents_request,
    run_query_request,
};
use firestore::gcloud_sdk::prost_types::Timestamp;

use super::codec::Fields;
use super::paths::Path;
use super::query::Ask;
use super::stored::{self, Document};
use super::turn::Turn;
use crate::damage;
use crate::store::{Result, StoreError};

/// Most documents in one call.
const PAGE: usize = 300;
/// Fewest documents in a call that goes on behind one that was set aside.
const BEHIND: usize = 16;

/// A document that was there.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) fields: Fields,
    pub(super) update_time: Timestamp,
}

/// What was read of one moment.
pub(super) struct Reading<'t> {
    turn: &'t Turn<'t>,
    at: Option<Timestamp>,
    seen: BTreeMap<Path, Option<Found>>,
    held: BTreeSet<Path>,
}

impl<'t> Reading<'t> {
    pub(super) fn new(turn: &'t Turn<'t>) -> Self {
        Self {
            turn,
            at: None,
            seen: BTreeMap::new(),
            held: BTreeSet::new(),
        }
    }

    /// Reads these documents in one call, those known already left out. For what will be needed: the fewer calls, the sooner the answer.
    pub(super) async fn fetch(&mut self, paths: impl IntoIterator<Item = Path>) -> Result<()> {
        let unseen: BTreeSet<Path> = paths
            .into_iter()
            .filter(|path| !self.seen.contains_key(path))
            .collect();
        let unseen: Vec<Path> = unseen.into_iter().collect();
        for some in unseen.chunks(PAGE) {
            self.fetch_some(some).await?;
        }
        Ok(())
    }

    async fn fetch_some(&mut self, paths: &[Path]) -> Result<()> {
        use batch_get_documents_request::ConsistencySelector::ReadTime;
        let link = self.turn.link;
        let message = BatchGetDocumentsRequest {
            database: link.database().to_owned(),
            documents: paths.iter().map(|path| link.name(path)).collect(),
            mask: None,
            request_options: None,
            consistency_selector: self.at.map(ReadTime),
        };
        let answers = self
            .turn
            .ask("get", &message, |mut client, request| async move {
                let mut stream = client.batch_get_documents(request).await?.into_inner();
                let mut answers = Vec::new();
                while let Some(answer) = stream.message().await? {
                    answers.push(answer);
                }
                Ok(answers)
            })
            .await?;
        link.counters.reads(self.turn.op(), paths.len());
        let (mut read, mut shown) = (None, None);
        for answer in answers {
            read = later(read, answer.read_time);
            match answer.result {
                Some(GetResult::Found(document)) => {
                    let (path, found) = self.found(document)?;
                    shown = later(shown, Some(found.update_time));
                    self.seen.insert(path, Some(found));
                }
                Some(GetResult::Missing(name)) => {
                    let path = self.path(&name)?;
                    self.seen.insert(path, None);
                }
                None => {}
            }
        }
        // An answer that left one out would let a document that exists pass for a missing one.
        if !paths.iter().all(|path| self.seen.contains_key(path)) {
            return Err(StoreError::Damaged { what: "answer" });
        }
        if self.begins_at(read, shown) {
            return Ok(());
        }
        for path in paths {
            self.seen.remove(path);
        }
        Box::pin(self.fetch_some(paths)).await
    }

    /// Settles the moment with its first answer; false if that is to be asked for again.
    fn begins_at(&mut self, read: Option<Timestamp>, shown: Option<Timestamp>) -> bool {
        let (at, settled) = moment(self.at, read, shown);
        self.at = at;
        settled
    }

    /// One document.
    pub(super) async fn get<T: Document>(&mut self, path: Path) -> Result<Option<T>> {
        self.fetch([path.clone()]).await?;
        match self.seen.get(&path) {
            Some(Some(found)) => stored::parse(&path, found.fields.clone()).map(Some),
            Some(None) | None => Ok(None),
        }
    }

    /// Every document that a query finds; they may then be written.
    pub(super) async fn query<T: Document>(&mut self, ask: &Ask) -> Result<Vec<T>> {
        let found = self.raw(ask).await?;
        found
            .into_iter()
            .map(|(path, found)| {
                let document = stored::parse(&path, found.fields.clone())?;
                self.seen.insert(path, Some(found));
                Ok(document)
            })
            .collect()
    }

    /// As [`Reading::query`], for whoever looks through what belongs to many: what cannot be read, or is not as `holds` wants it, is set aside, and stops
    /// nobody. Goes on until there are `limit` that can be.
    pub(super) async fn sound<T: Document>(
        &mut self,
        ask: &Ask,
        holds: impl Fn(&T, &Fields) -> bool,
    ) -> Result<Vec<T>> {
        let mut all = Vec::new();
        let mut after: Option<(Path, Found)> = None;
        while all.len() < ask.limit {
            let wanted = PAGE.min(ask.limit - all.len());
            // Behind one that is damaged there may be more.
            let size = after.as_ref().map_or(wanted, |_| wanted.max(BEHIND));
            let page = self.page(ask, size, after.as_ref()).await?;
            let last = page.len() < size;
            after = page.last().cloned();
            for (path, found) in page {
                match stored::parse::<T>(&path, found.fields.clone()) {
                    Ok(document) if holds(&document, &found.fields) => {
                        self.seen.insert(path, Some(found));
                        all.push(document);
                    }
                    _ => damage::set_aside(T::WHAT, path.as_str()),
                }
            }
            if last {
                break;
            }
        }
        all.truncate(ask.limit);
        Ok(all)
    }

    /// What a query finds, as it lies there.
    pub(super) async fn raw(&mut self, ask: &Ask) -> Result<Vec<(Path, Found)>> {
        let mut all: Vec<(Path, Found)> = Vec::new();
        while all.len() < ask.limit {
            let size = PAGE.min(ask.limit - all.len());
            let page = self.page(ask, size, all.last()).await?;
            let last = page.len() < size;
            all.extend(page);
            if last {
                break;
            }
        }
        Ok(all)
    }

    /// One page of what a query finds, all of its `limit` in it, after the document at `after`. Only for a query that orders by nothing but the name.
    pub(super) async fn beyond(
        &mut self,
        ask: &Ask,
        after: Option<Path>,
    ) -> Result<Vec<(Path, Found)>> {
        let after = after.map(|path| {
            let found = Found {
                fields: Fields::new(),
                update_time: Timestamp::default(),
            };
            (path, found)
        });
        self.page(ask, ask.limit, after.as_ref()).await
    }

    async fn page(
        &mut self,
        ask: &Ask,
        size: usize,
        after: Option<&(Path, Found)>,
    ) -> Result<Vec<(Path, Found)>> {
        let link = self.turn.link;
        let parent = match &ask.parent {
            Some(path) => link.name(path),
            None => link.documents().to_owned(),
        };
        let last = after.map(|(path, found)| (link.name(path), &found.fields));
        let structured = ask.page(size, last.as_ref().map(|(name, fields)| (&**name, *fields)));
        let message = RunQueryRequest {
            parent,
            explain_options: None,
            request_options: None,
            query_type: Some(run_query_request::QueryType::StructuredQuery(structured)),
            consistency_selector: self
                .at
                .map(run_query_request::ConsistencySelector::ReadTime),
        };
        let answers = self
            .turn
            .ask("query", &message, |mut client, request| async move {
                let mut stream = client.run_query(request).await?.into_inner();
                let mut answers = Vec::new();
                while let Some(answer) = stream.message().await? {
                    answers.push(answer);
                }
                Ok(answers)
            })
            .await?;
        let (mut read, mut shown) = (None, None);
        let mut documents = Vec::with_capacity(answers.len());
        for answer in answers {
            read = later(read, answer.read_time);
            if let Some(document) = answer.document {
                let (path, found) = self.found(document)?;
                shown = later(shown, Some(found.update_time));
                documents.push((path, found));
            }
        }
        link.counters.reads(self.turn.op(), documents.len().max(1));
        if self.begins_at(read, shown) {
            return Ok(documents);
        }
        Box::pin(self.page(ask, size, after)).await
    }

    /// Takes note of what [`Reading::raw`] found, so that it can be written.
    pub(super) fn remember(&mut self, path: Path, found: Found) {
        self.seen.insert(path, Some(found));
    }

    /// What the judgement rests on without writing it: the commit fails if it is not as it was read.
    pub(super) fn hold(&mut self, path: Path) {
        self.held.insert(path);
    }

    pub(super) fn held(&self) -> impl Iterator<Item = &Path> {
        self.held.iter()
    }

    /// What was seen at `path`: the outer `None` if nobody looked.
    pub(super) fn seen(&self, path: &Path) -> Option<Option<&Found>> {
        self.seen.get(path).map(Option::as_ref)
    }

    pub(super) fn turn(&self) -> &'t Turn<'t> {
        self.turn
    }

    fn found(&self, document: Wire) -> Result<(Path, Found)> {
        let damaged = StoreError::Damaged { what: "answer" };
        let path = self.path(&document.name)?;
        let found = Found {
            fields: document.fields,
            update_time: document.update_time.ok_or(damaged)?,
        };
        Ok((path, found))
    }

    fn path(&self, name: &str) -> Result<Path> {
        Path::of_name(name, self.turn.link.documents())
            .ok_or(StoreError::Damaged { what: "answer" })
    }
}

/// The moment that is read, and whether an answer is of it. The first answer settles it, unless it shows a change later than the time it claims to be of: on from
/// there, what was written with that change would be missing, so the change's own time is the moment.
fn moment(
    at: Option<Timestamp>,
    read: Option<Timestamp>,
    shown: Option<Timestamp>,
) -> (Option<Timestamp>, bool) {
    match at {
        Some(_) => (at, true),
        None => {
            let at = later(read, shown);
            (at, at == read)
        }
    }
}

fn later(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    let key = |stamp: &Timestamp| (stamp.seconds, stamp.nanos);
    one.into_iter().chain(other).max_by_key(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_answer_settles_the_moment_unless_it_shows_what_came_later() {
        let at = |seconds, nanos| Some(Timestamp { seconds, nanos });
        assert_eq!(moment(None, at(2, 0), at(1, 6)), (at(2, 0), true));
        assert_eq!(moment(None, at(2, 0), None), (at(2, 0), true));
        assert_eq!(moment(None, at(1, 5), at(1, 6)), (at(1, 6), false));
        assert_eq!(moment(at(1, 6), at(1, 6), at(1, 6)), (at(1, 6), true));
        // What is read of a moment in the past was not changed later.
        assert_eq!(moment(at(3, 0), None, at(1, 0)), (at(3, 0), true));
    }
}
