//! Steps of the schema that SQL alone cannot do. Like every step they run once, and the documents they read are those of their time.

use rusqlite::Transaction;

use super::{apply, load};
use crate::audit::Instance;
use crate::documents::{AuditRecord, ClientDoc};
use crate::store::Result;

/// Puts the records of a trail without chains into chains, in their order. What names no client goes to the chain of the instance that opens the file:
/// nobody wrote down which one it was.
pub(super) fn chain_the_trail(tx: &Transaction<'_>, instance: &Instance) -> Result<()> {
    let sql = "SELECT doc FROM audit_unchained ORDER BY seq";
    for record in load::all::<AuditRecord>(tx, "audit", sql, [])? {
        apply::audit(tx, instance, vec![record], None)?;
    }
    for client in load::all::<ClientDoc>(tx, "client", "SELECT doc FROM clients", [])? {
        apply::audit(tx, instance, Vec::new(), Some(&client))?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use keyturn_proto::UnixMs;
    use rusqlite::Connection;

    use super::super::schema;
    use super::*;
    use crate::audit::{chain_id, verify_chain};
    use crate::documents::{Actor, AuditChainDoc, AuditEntry};
    use crate::store::Stored;

    fn record(at: u64, client: Option<&str>) -> AuditRecord {
        AuditRecord {
            at: UnixMs(at),
            actor: Actor::Relay,
            event: format!("event.{at}"),
            reason: String::new(),
            client_id: client.map(|id| id.parse().unwrap()),
            rotation_id: None,
            version_id: None,
            group: None,
            nostr_event: None,
            device: None,
        }
    }

    #[test]
    fn a_trail_from_before_the_chains_is_chained_in_its_order() {
        let mut db = Connection::open_in_memory().unwrap();
        schema::first(&db);
        let records = [(1, Some("a")), (2, None), (3, Some("b")), (4, Some("a"))];
        for (at, client) in records {
            let doc = serde_json::to_string(&record(at, client)).unwrap();
            let sql = "INSERT INTO audit (at, client_id, doc) VALUES (?1, ?2, ?3)";
            db.execute(sql, (at, client, doc)).unwrap();
        }
        schema::migrate(&mut db, &Instance::operator()).unwrap();

        let tx = db.transaction().unwrap();
        for (name, expected) in [
            ("client:a", vec![1, 4]),
            ("client:b", vec![3]),
            ("instance:operator", vec![2]),
        ] {
            let id = chain_id(name);
            let head: AuditChainDoc = load::chain_head(&tx, &id).unwrap().unwrap();
            let sql = "SELECT id, doc FROM audit WHERE id LIKE ?1 || '%' ORDER BY id";
            let entries: Vec<Stored<AuditEntry>> = load::stored(&tx, sql, [&id]).unwrap();
            assert_eq!(verify_chain(&id, Some(&head), &entries), []);
            let times: Vec<u64> = entries
                .iter()
                .map(|entry| entry.doc.as_ref().unwrap().record.at.0)
                .collect();
            assert_eq!(times, expected, "{name}");
        }
        let order: Vec<AuditEntry> =
            load::all(&tx, "audit", "SELECT doc FROM audit ORDER BY position", []).unwrap();
        assert!(order.iter().map(|entry| entry.record.at.0).eq(1..=4));
        assert!(tx.execute("DELETE FROM audit", []).is_err(), "append-only");
        assert!(tx.execute("UPDATE audit SET doc = ''", []).is_err());
        assert!(tx.execute("DELETE FROM audit_chains", []).is_err());
    }
}
