//! Changes that share a commit, and who is told of it when.
#![allow(clippy::unwrap_used)]

use super::*;

const REFUSED: StoreError = StoreError::Conflict { why: "refused" };

/// Three changes that share a transaction; the one in the middle fails, after it has written `written` rows. What each came to, and the rows that are there.
async fn three(written: usize) -> (Vec<bool>, i64) {
    let db = Connection::open_in_memory().unwrap();
    db.execute("CREATE TABLE t (n INTEGER)", []).unwrap();
    let worker = Worker::start("test", db, None, Instance::operator()).unwrap();
    // Holds the thread until all three wait.
    let (go, held) = std::sync::mpsc::channel::<()>();
    let holding = worker.read(move |_| {
        held.recv().unwrap();
        Ok(())
    });
    let insert = |rows: usize, fails: bool| {
        worker.write_grouped(move |tx, _| {
            for n in 0..rows {
                let n = i64::try_from(n).unwrap();
                tx.execute("INSERT INTO t VALUES (?1)", [n]).unwrap();
            }
            if fails { Err(REFUSED) } else { Ok(()) }
        })
    };
    let release = async {
        while worker.jobs.capacity() > QUEUE - 3 {
            tokio::task::yield_now().await;
        }
        go.send(()).unwrap();
    };
    let (held, one, two, three, ()) = tokio::join!(
        holding,
        insert(1, false),
        insert(written, true),
        insert(1, false),
        release
    );
    held.unwrap();
    assert_eq!(two, Err(REFUSED));
    let rows = worker
        .read(|tx| {
            let count = tx.query_row("SELECT count(*) FROM t", [], |row| row.get(0));
            count.map_err(error::sql)
        })
        .await
        .unwrap();
    (vec![one.is_ok(), three.is_ok()], rows)
}

#[tokio::test]
async fn a_change_that_refuses_harms_nobody_who_shares_its_commit() {
    assert_eq!(three(0).await, (vec![true, true], 2));
}

#[tokio::test]
async fn who_comes_before_anything_is_written_depends_on_nobody() {
    let db = Connection::open_in_memory().unwrap();
    db.execute("CREATE TABLE t (n INTEGER)", []).unwrap();
    let worker = Worker::start("test", db, None, Instance::operator()).unwrap();
    let (go, held) = std::sync::mpsc::channel::<()>();
    let holding = worker.read(move |_| {
        held.recv().unwrap();
        Ok(())
    });
    let looks = || worker.write_grouped(|_, _| Ok(()));
    let fails = worker.write_grouped(|tx, _| -> Result<()> {
        tx.execute("INSERT INTO t VALUES (1)", []).unwrap();
        Err(REFUSED)
    });
    let writes = worker.write_grouped(|tx, _| {
        tx.execute("INSERT INTO t VALUES (1)", []).unwrap();
        Ok(())
    });
    let release = async {
        while worker.jobs.capacity() > QUEUE - 3 {
            tokio::task::yield_now().await;
        }
        go.send(()).unwrap();
    };
    let (held, before, writes, fails, ()) = tokio::join!(holding, looks(), writes, fails, release);
    held.unwrap();
    assert_eq!(before, Ok(()));
    assert!(
        writes.is_err(),
        "given up with the one that failed half-way"
    );
    assert_eq!(fails, Err(REFUSED));
}

#[tokio::test]
async fn nothing_is_committed_with_a_change_that_failed_half_way() {
    let (answers, rows) = three(1).await;
    // Whoever came after the failure may have been given a transaction of its own.
    assert!(!answers[0]);
    assert_eq!(rows, i64::from(answers[1]));
}

#[tokio::test]
async fn only_who_asked_for_it_is_told_before_the_disk_has_it_and_a_lost_log_ends_all_writing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.db");
    let db = Connection::open(&path).unwrap();
    db.pragma_update(None, "journal_mode", "WAL").unwrap();
    db.execute("CREATE TABLE t (n INTEGER)", []).unwrap();
    let mode = |db: &Connection| db.query_row("PRAGMA synchronous", [], |row| row.get(0));
    let full: i64 = mode(&db).unwrap();
    let log = Log::of(&db).unwrap().unwrap();
    let failing = log.fails_when(dir.path().join("broken"));
    let worker = Worker::start("test", db, Some(failing), Instance::operator()).unwrap();
    let insert = |tx: &Transaction<'_>| {
        tx.execute("INSERT INTO t VALUES (1)", []).unwrap();
        Ok(7)
    };
    let early = worker.write_early(move |tx, _| insert(tx)).await.unwrap();
    assert_eq!(early.answer, 7);
    early.durable().await.unwrap();
    let after = worker
        .read(move |tx| mode(tx).map_err(error::sql))
        .await
        .unwrap();
    assert_eq!(after, full, "the next commit would not wait for the disk");

    std::fs::write(dir.path().join("broken"), "").unwrap();
    // Who does not ask to be told early waits within the commit, and does not need the log.
    worker.write_grouped(move |tx, _| insert(tx)).await.unwrap();
    let early = worker.write_early(move |tx, _| insert(tx)).await.unwrap();
    assert_eq!(early.answer, 7);
    let durable = early.durable().await;
    assert!(matches!(durable, Err(StoreError::Unknown { .. })));
    std::fs::remove_file(dir.path().join("broken")).unwrap();
    // What is behind it in the log may be lost with it: nobody is told "done" any more, not even of a repeat that changes nothing.
    let grouped = worker.write_grouped(|_, _| Ok(())).await;
    assert_eq!(grouped, Err(LOST));
    assert_eq!(worker.write(|_| Ok(())).await, Err(LOST));
    assert!(worker.write_early(|_, _| Ok(())).await.is_err());
}
