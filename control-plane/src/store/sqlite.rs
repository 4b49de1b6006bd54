//! SQLite: one file per role, one writer at a time, migrations. The statements are in [`super::sql`].

use std::{
    fs::OpenOptions,
    io::ErrorKind,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use protocol::id::Role;
use sqlx::{
    ConnectOptions, Sqlite, SqliteConnection, SqlitePool,
    migrate::{MigrateError, Migrator},
    pool::PoolConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::{
    runtime::Handle,
    sync::{Mutex, OwnedMutexGuard},
};

use super::{
    StoreError,
    sql::{self, Db, Durability, Engine},
};

/// One role's connections to its file.
pub(crate) struct Pools {
    /// Cannot write; each statement reads what was committed before it.
    pub(crate) readers: SqlitePool,
    /// `synchronous = FULL`, one connection.
    durable: SqlitePool,
    /// `synchronous = NORMAL`, one connection. In WAL mode a power failure loses its last transactions and tears none.
    soon: SqlitePool,
    /// Who of this process writes: a fair queue instead of SQLite's busy waiting, which is left for other processes.
    pub(crate) turn: Arc<Mutex<()>>,
    /// The file.
    path: PathBuf,
}

impl Pools {
    /// The pool for writes of this durability; whoever writes holds `turn`.
    pub(crate) fn writing(&self, durability: Durability) -> &SqlitePool {
        match durability {
            Durability::Now => &self.durable,
            Durability::Soon => &self.soon,
        }
    }

    /// Begins a writing transaction.
    pub(crate) async fn begin(&self, durability: Durability) -> Result<Transaction, StoreError> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let connection = self.writing(durability).acquire().await?;
        // Made before BEGIN: whoever stops waiting for it must not leave the connection in a transaction.
        let mut transaction = Transaction(Some((connection, turn)));
        // Not deferred: a transaction that read first could not become a writing one after another process's commit.
        sqlx::query("BEGIN IMMEDIATE").execute(transaction.connection()?).await?;
        Ok(transaction)
    }

    /// Makes the role's tables. Several processes may do so at once: who comes second finds its work done, at the latest
    /// when it looks again.
    pub(crate) async fn migrate(&self, role: Role) -> Result<(), StoreError> {
        let _turn = self.turn.lock().await;
        let mut migrator = migrations(role);
        migrator.set_ignore_missing(true);
        let mut tries = 0;
        loop {
            match migrator.run(&self.durable).await {
                Err(MigrateError::ExecuteMigration(..) | MigrateError::Execute(_)) if tries < sql::RACE_RETRIES => {
                    tries += 1;
                }
                result => return Ok(result?),
            }
        }
    }

    /// Whether so many bytes of large values can be written: as many in the file, and up to a checkpoint's worth in its
    /// log. The other roles' files, on the same file system as a rule, must not come to a standstill by it.
    pub(crate) fn has_room(&self, len: u64) -> Result<(), StoreError> {
        let needed = len.saturating_add(len.min(MAX_LOG_LEN)).saturating_add(len / 32).saturating_add(RESERVE_LEN);
        let system = rustix::fs::statvfs(&self.path).map_err(|error| sqlx::Error::Io(error.into()))?;
        let free = system.f_bavail.saturating_mul(system.f_frsize);
        if free < needed { Err(StoreError::NoRoom { needed, free }) } else { Ok(()) }
    }

    /// Ends all connections; the last one empties the write-ahead log into the file.
    pub(crate) async fn close(&self) {
        for pool in [&self.readers, &self.soon, &self.durable] {
            // Twice: a connection that is on its way back to the pool while the first waits is closed by the second.
            pool.close().await;
            pool.close().await;
        }
    }
}

/// A writing transaction, and the turn of this process's writers until it has ended.
///
/// Not sqlx's: SQLite ends a transaction by itself when the disk is full, which sqlx does not notice, and the connection
/// could begin none afterwards.
pub(crate) struct Transaction(Option<(PoolConnection<Sqlite>, OwnedMutexGuard<()>)>);

impl Transaction {
    /// Where its statements go.
    pub(crate) fn connection(&mut self) -> Result<&mut SqliteConnection, StoreError> {
        let (connection, _) = self.0.as_mut().ok_or(StoreError::Corrupt("a transaction that has ended"))?;
        Ok(connection)
    }

    /// Ends it, keeping what it wrote.
    pub(crate) async fn commit(mut self) -> Result<(), StoreError> {
        // After an error, and for whoever stops waiting, the rest is done by drop.
        sqlx::query("COMMIT").execute(self.connection()?).await?;
        self.0 = None;
        Ok(())
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        let Some((mut connection, turn)) = self.0.take() else {
            return;
        };
        match Handle::try_current() {
            Ok(handle) => {
                handle.spawn(async move {
                    // It fails if SQLite has ended the transaction already; a new connection is safe in any case.
                    if sqlx::query("ROLLBACK").execute(&mut *connection).await.is_err() {
                        connection.close_on_drop();
                    }
                    // The next writer comes only now.
                    drop((connection, turn));
                });
            }
            Err(_) => connection.close_on_drop(),
        }
    }
}

/// Opens a role's file, which `url` (`sqlite:PATH`) names, and makes an empty one with mode 0600 if there is none; tables
/// are not made here.
///
/// # Errors
/// [`StoreError::Database`] if the URL is none, names no file, or the file cannot be opened.
pub(crate) async fn open(role: Role, url: &str) -> Result<Db, StoreError> {
    let options = SqliteConnectOptions::from_str(url)?
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(true)
        .pragma("journal_size_limit", JOURNAL_SIZE_LIMIT)
        .disable_statement_logging();
    let path = options.get_filename();
    if url.contains(":memory:") || url.contains("mode=memory") || path.as_os_str().is_empty() {
        return Err(sqlx::Error::Configuration("a SQLite store is a file".into()).into());
    }
    let path = path.to_owned();
    create(&path).map_err(sqlx::Error::from)?;
    let durable = options.clone().synchronous(SqliteSynchronous::Full);
    let soon = options.clone().synchronous(SqliteSynchronous::Normal);
    let reading = options.pragma("query_only", "on");
    // In this order: the first connection turns the file to WAL mode.
    let durable = pool(1).connect_with(durable).await?;
    let soon = pool(1).connect_with(soon).await?;
    let readers = pool(READERS).connect_with(reading).await?;
    Ok(Db { role, engine: Engine::Sqlite(Pools { readers, durable, soon, turn: Arc::default(), path }) })
}

/// Makes an empty file for its owner only; SQLite's log and index files take the same mode.
///
/// A file that is there is not even opened: closing it would drop the locks that this process may hold on it.
fn create(path: &Path) -> std::io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        result => result.map(|_| ()),
    }
}

fn pool(connections: u32) -> SqlitePoolOptions {
    // Connections to a file do not age.
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
}

fn migrations(role: Role) -> Migrator {
    match role {
        Role::Registrar => sqlx::migrate!("./migrations/sqlite/registrar"),
        Role::Verifier => sqlx::migrate!("./migrations/sqlite/verifier"),
        Role::Tenant => sqlx::migrate!("./migrations/sqlite/tenant"),
    }
}

/// Reads are short; two in parallel are as fast as a small machine has cores.
const READERS: u32 = 2;
/// How long a write waits for another process, such as one that migrates.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a call waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of write-ahead log that stay allocated after a large payload.
const JOURNAL_SIZE_LIMIT: &str = "16777216";
/// Bytes of write-ahead log between two checkpoints: SQLite's 1,000 pages of 4 KiB.
const MAX_LOG_LEN: u64 = 4_096_000;
/// Bytes that a large value leaves free: many rounds of attestation, until a person has made room.
const RESERVE_LEN: u64 = 128 * 1024;
