//! The writes of one commit, each on the condition that the document is as it was read.

use firestore::gcloud_sdk::google::firestore::v1::precondition::ConditionType;
use firestore::gcloud_sdk::google::firestore::v1::write::Operation;
use firestore::gcloud_sdk::google::firestore::v1::{
    Document as Wire, DocumentMask, Precondition, Write,
};

use super::codec::Fields;
use super::paths::Path;
use super::reading::{Found, Reading};
use super::stored::{self, Document};
use crate::store::{Result, StoreError};

/// The writes of one commit.
pub(super) struct Writes<'r, 't> {
    reading: &'r Reading<'t>,
    list: Vec<(Path, Write)>,
}

impl<'r, 't> Writes<'r, 't> {
    pub(super) fn new(reading: &'r Reading<'t>) -> Self {
        Self {
            reading,
            list: Vec::new(),
        }
    }

    /// Creates or replaces a document that was read.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when nobody has looked at it, or it cannot be represented.
    pub(super) fn put<T: Document>(&mut self, document: &T) -> Result<()> {
        let path = document.path()?;
        let unread = StoreError::Damaged { what: T::WHAT };
        let condition = match self.reading.seen(&path).ok_or(unread)? {
            Some(found) => unchanged(found),
            None => ConditionType::Exists(false),
        };
        let fields = stored::fields(document)?;
        self.update(path, fields, None, Some(condition));
        Ok(())
    }

    /// Creates a document; there must be none.
    pub(super) fn create<T: Document>(&mut self, document: &T, extra: Fields) -> Result<()> {
        let mut fields = stored::fields(document)?;
        fields.extend(extra);
        let condition = ConditionType::Exists(false);
        self.update(document.path()?, fields, None, Some(condition));
        Ok(())
    }

    /// Writes a document that says nothing of its own: it follows from another one of this commit, whose condition guards both.
    pub(super) fn derive<T: Document>(&mut self, document: &T) -> Result<()> {
        let fields = stored::fields(document)?;
        self.update(document.path()?, fields, None, None);
        Ok(())
    }

    /// Changes only these fields of a document that was read.
    pub(super) fn patch(&mut self, path: Path, fields: Fields) {
        let condition = match self.reading.seen(&path) {
            Some(Some(found)) => unchanged(found),
            Some(None) | None => ConditionType::Exists(true),
        };
        let mut names: Vec<String> = fields.keys().cloned().collect();
        names.sort();
        self.update(path, fields, Some(names), Some(condition));
    }

    /// Deletes a document that was read; one that was missing stays so.
    pub(super) fn delete(&mut self, path: Path) {
        let Some(Some(found)) = self.reading.seen(&path) else {
            return;
        };
        let write = Write {
            current_document: Some(precondition(unchanged(found))),
            operation: Some(Operation::Delete(self.name(&path))),
            ..Write::default()
        };
        self.list.push((path, write));
    }

    /// All writes. What was held but is not written gets a write of no field at all: it changes nothing, not even the update time, and fails like any other
    /// when the document is no longer as it was read.
    pub(super) fn finish(mut self) -> Vec<Write> {
        let held: Vec<Path> = self.reading.held().cloned().collect();
        for path in held {
            if self.list.iter().any(|(written, _)| *written == path) {
                continue;
            }
            if let Some(Some(found)) = self.reading.seen(&path) {
                let condition = unchanged(found);
                self.update(path, Fields::new(), Some(Vec::new()), Some(condition));
            }
        }
        self.list.into_iter().map(|(_, write)| write).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    fn update(
        &mut self,
        path: Path,
        fields: Fields,
        mask: Option<Vec<String>>,
        condition: Option<ConditionType>,
    ) {
        let write = Write {
            update_mask: mask.map(|field_paths| DocumentMask { field_paths }),
            update_transforms: Vec::new(),
            current_document: condition.map(precondition),
            operation: Some(Operation::Update(Wire {
                name: self.name(&path),
                fields,
                create_time: None,
                update_time: None,
            })),
        };
        self.list.push((path, write));
    }

    fn name(&self, path: &Path) -> String {
        self.reading.turn().link.name(path)
    }
}

fn unchanged(found: &Found) -> ConditionType {
    ConditionType::UpdateTime(found.update_time)
}

fn precondition(condition: ConditionType) -> Precondition {
    Precondition {
        condition_type: Some(condition),
    }
}
