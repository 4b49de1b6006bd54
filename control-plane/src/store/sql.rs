//! One set of statements for both databases: what is asked of a database, and the rows that come back.
//!
//! Both understand numbered parameters, `ON CONFLICT` and `RETURNING`, and both schemas have a view `clock`, so the
//! statements in [`event`], [`appraiser`], [`registrar`], [`verifier`] and [`tenant`] are written once. What differs
//! (opening, pools, migrations) is in [`super::postgres`] and [`super::sqlite`]; the row lock is in [`Tx::lock`].
//!
//! **Invariant**: neither rows nor parameters have a `Debug`, and statements are not logged.

mod appraiser;
mod codec;
mod event;
mod registrar;
mod tenant;
mod verifier;

use protocol::id::Role;
use sqlx::{
    Decode, Postgres, Row as _, Sqlite, Transaction, Type,
    postgres::{PgArguments, PgRow},
    query::Query,
    sqlite::{SqliteArguments, SqliteRow},
};

use super::{StoreError, UnixMs, postgres, sqlite};

/// The registrar's tables on either database.
pub(crate) struct Registrar(pub(crate) Db);
/// The verifier's tables on either database.
pub(crate) struct Verifier(pub(crate) Db);
/// The tenant's tables on either database.
pub(crate) struct Tenant(pub(crate) Db);

/// Whose tables lie in a [`Db`]; what every role's store has is implemented on this.
pub(crate) trait OnDb: Send + Sync {
    /// The database.
    fn db(&self) -> &Db;
}

/// A role that appraises: its schema has the tables for it.
pub(crate) trait Appraises: OnDb {}

impl OnDb for Registrar {
    fn db(&self) -> &Db {
        &self.0
    }
}

impl OnDb for Verifier {
    fn db(&self) -> &Db {
        &self.0
    }
}

impl OnDb for Tenant {
    fn db(&self) -> &Db {
        &self.0
    }
}

impl Appraises for Verifier {}
impl Appraises for Tenant {}

/// One role's database.
pub(crate) struct Db {
    pub(crate) role: Role,
    pub(crate) engine: Engine,
}

/// The pools of either database.
pub(crate) enum Engine {
    Postgres(postgres::Pools),
    Sqlite(sqlite::Pools),
}

/// When a write is on the disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Durability {
    /// Before its transaction returns.
    Now,
    /// Soon; a power failure may lose it, never tear it. Only for what may be lost: a positive renewal (then trust ends
    /// sooner) and the history for people. Whatever is written durably afterwards takes it to the disk as well.
    Soon,
}

/// A parameter.
#[derive(Clone, Copy)]
pub(crate) enum Value<'a> {
    Int(Option<i64>),
    Text(Option<&'a str>),
    Blob(Option<&'a [u8]>),
    Bool(Option<bool>),
}

impl From<i64> for Value<'_> {
    fn from(value: i64) -> Self {
        Self::Int(Some(value))
    }
}

impl From<u32> for Value<'_> {
    fn from(value: u32) -> Self {
        Self::Int(Some(value.into()))
    }
}

impl From<Option<i64>> for Value<'_> {
    fn from(value: Option<i64>) -> Self {
        Self::Int(value)
    }
}

impl From<bool> for Value<'_> {
    fn from(value: bool) -> Self {
        Self::Bool(Some(value))
    }
}

impl From<Option<bool>> for Value<'_> {
    fn from(value: Option<bool>) -> Self {
        Self::Bool(value)
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(value: &'a str) -> Self {
        Self::Text(Some(value))
    }
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(value: &'a String) -> Self {
        Self::Text(Some(value))
    }
}

impl<'a> From<Option<&'a str>> for Value<'a> {
    fn from(value: Option<&'a str>) -> Self {
        Self::Text(value)
    }
}

impl<'a> From<&'a [u8]> for Value<'a> {
    fn from(value: &'a [u8]) -> Self {
        Self::Blob(Some(value))
    }
}

impl<'a> From<&'a Vec<u8>> for Value<'a> {
    fn from(value: &'a Vec<u8>) -> Self {
        Self::Blob(Some(value))
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Value<'a> {
    fn from(value: &'a [u8; N]) -> Self {
        Self::Blob(Some(value))
    }
}

impl<'a, const N: usize> From<Option<&'a [u8; N]>> for Value<'a> {
    fn from(value: Option<&'a [u8; N]>) -> Self {
        Self::Blob(value.map(<[u8; N]>::as_slice))
    }
}

impl<'a> From<Option<&'a [u8]>> for Value<'a> {
    fn from(value: Option<&'a [u8]>) -> Self {
        Self::Blob(value)
    }
}

/// The parameters of one statement, `$1` first.
macro_rules! values {
    ($($value:expr),* $(,)?) => { &[$($crate::store::sql::Value::from($value)),*] };
}
use values;

/// Does a transaction again when another one was faster: what it finds the second time decides.
///
/// Postgres tells two transactions that both saw a free place and took it only at the second one's insert. SQLite never
/// gets here: its write transactions do not overlap.
macro_rules! retry_races {
    ($attempt:expr) => {{
        let mut tries = 0;
        loop {
            match $attempt {
                Err(error) if tries < $crate::store::sql::RACE_RETRIES && $crate::store::sql::is_race(&error) => {
                    tries += 1;
                }
                result => break result,
            }
        }
    }};
}
use retry_races;

/// A row. Columns are counted from 0.
pub(crate) enum Row {
    Postgres(PgRow),
    Sqlite(SqliteRow),
}

/// What a column can be read as, on both databases.
pub(crate) trait Column:
    Type<Postgres> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + for<'r> Decode<'r, Sqlite>
{
}

impl<T> Column for T where T: Type<Postgres> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + for<'r> Decode<'r, Sqlite> {}

impl Row {
    /// Reads a column.
    pub(crate) fn get<T: Column>(&self, index: usize) -> Result<T, StoreError> {
        Ok(match self {
            Self::Postgres(row) => row.try_get(index)?,
            Self::Sqlite(row) => row.try_get(index)?,
        })
    }

    /// Reads a column of exactly `N` bytes.
    pub(crate) fn array<const N: usize>(&self, index: usize) -> Result<[u8; N], StoreError> {
        self.get::<Vec<u8>>(index)?.try_into().map_err(|_| StoreError::Corrupt("bytes of another length"))
    }

    /// Reads a column of exactly `N` bytes, or none.
    pub(crate) fn opt_array<const N: usize>(&self, index: usize) -> Result<Option<[u8; N]>, StoreError> {
        let bytes = self.get::<Option<Vec<u8>>>(index)?;
        bytes.map(|bytes| bytes.try_into().map_err(|_| StoreError::Corrupt("bytes of another length"))).transpose()
    }

    /// Reads a column that was a `u32`.
    pub(crate) fn u32(&self, index: usize) -> Result<u32, StoreError> {
        self.get::<i64>(index)?.try_into().map_err(|_| StoreError::Corrupt("a number out of range"))
    }
}

fn pg_query<'q>(sql: &'q str, values: &[Value<'q>]) -> Query<'q, Postgres, PgArguments> {
    values.iter().fold(sqlx::query(sql), |query, value| match *value {
        Value::Int(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
        Value::Blob(value) => query.bind(value),
        Value::Bool(value) => query.bind(value),
    })
}

fn sqlite_query<'q>(sql: &'q str, values: &[Value<'q>]) -> Query<'q, Sqlite, SqliteArguments<'q>> {
    values.iter().fold(sqlx::query(sql), |query, value| match *value {
        Value::Int(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
        Value::Blob(value) => query.bind(value),
        Value::Bool(value) => query.bind(value),
    })
}

impl Db {
    /// Reads at most one row.
    pub(crate) async fn row(&self, sql: &str, values: &[Value<'_>]) -> Result<Option<Row>, StoreError> {
        Ok(match &self.engine {
            Engine::Postgres(pools) => pg_query(sql, values).fetch_optional(&pools.durable).await?.map(Row::Postgres),
            Engine::Sqlite(pools) => sqlite_query(sql, values).fetch_optional(&pools.readers).await?.map(Row::Sqlite),
        })
    }

    /// Reads all rows; the statement limits them.
    pub(crate) async fn rows(&self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, StoreError> {
        Ok(match &self.engine {
            Engine::Postgres(pools) => {
                pg_query(sql, values).fetch_all(&pools.durable).await?.into_iter().map(Row::Postgres).collect()
            }
            Engine::Sqlite(pools) => {
                sqlite_query(sql, values).fetch_all(&pools.readers).await?.into_iter().map(Row::Sqlite).collect()
            }
        })
    }

    /// One writing statement in a transaction of its own; gives the number of rows it wrote.
    pub(crate) async fn write(
        &self,
        durability: Durability,
        sql: &str,
        values: &[Value<'_>],
    ) -> Result<u64, StoreError> {
        Ok(match &self.engine {
            Engine::Postgres(pools) => pg_query(sql, values).execute(pools.writing(durability)).await?.rows_affected(),
            Engine::Sqlite(pools) => {
                let _turn = pools.turn.lock().await;
                sqlite_query(sql, values).execute(pools.writing(durability)).await?.rows_affected()
            }
        })
    }

    /// Begins a writing transaction; dropped, it changes nothing.
    pub(crate) async fn begin(&self, durability: Durability) -> Result<Tx, StoreError> {
        Ok(match &self.engine {
            Engine::Postgres(pools) => Tx::Postgres(pools.writing(durability).begin().await?),
            Engine::Sqlite(pools) => Tx::Sqlite(pools.begin(durability).await?),
        })
    }

    /// Whether there is room for so many bytes of large values. A server elsewhere knows that itself.
    pub(crate) fn has_room(&self, len: u64) -> Result<(), StoreError> {
        match &self.engine {
            Engine::Postgres(_) => Ok(()),
            Engine::Sqlite(pools) => pools.has_room(len),
        }
    }

    /// The database's clock.
    pub(crate) async fn now_ms(&self) -> Result<UnixMs, StoreError> {
        let row = self.row("SELECT now_ms FROM clock", &[]).await?;
        row.ok_or(StoreError::Corrupt("no clock"))?.get(0)
    }

    /// Brings the schema up to what this program knows; what a newer program added is left alone.
    pub(crate) async fn migrate(&self) -> Result<(), StoreError> {
        match &self.engine {
            Engine::Postgres(pools) => pools.migrate(self.role).await,
            Engine::Sqlite(pools) => pools.migrate(self.role).await,
        }
    }

    /// Ends all connections, after what they are doing.
    pub(crate) async fn close(&self) {
        match &self.engine {
            Engine::Postgres(pools) => pools.close().await,
            Engine::Sqlite(pools) => pools.close().await,
        }
    }
}

/// A writing transaction; dropped before its end, it changes nothing.
pub(crate) enum Tx {
    Postgres(Transaction<'static, Postgres>),
    Sqlite(sqlite::Transaction),
}

impl Tx {
    /// Reads at most one row.
    pub(crate) async fn row(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Option<Row>, StoreError> {
        Ok(match self {
            Self::Postgres(tx) => pg_query(sql, values).fetch_optional(&mut **tx).await?.map(Row::Postgres),
            Self::Sqlite(tx) => sqlite_query(sql, values).fetch_optional(tx.connection()?).await?.map(Row::Sqlite),
        })
    }

    /// Reads one row of one table and keeps others from changing it until the end; SQLite has only one writer anyway.
    pub(crate) async fn lock(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Option<Row>, StoreError> {
        match self {
            Self::Postgres(_) => self.row(&format!("{sql} FOR UPDATE"), values).await,
            Self::Sqlite(..) => self.row(sql, values).await,
        }
    }

    /// Reads all rows.
    pub(crate) async fn rows(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, StoreError> {
        Ok(match self {
            Self::Postgres(tx) => {
                pg_query(sql, values).fetch_all(&mut **tx).await?.into_iter().map(Row::Postgres).collect()
            }
            Self::Sqlite(tx) => {
                sqlite_query(sql, values).fetch_all(tx.connection()?).await?.into_iter().map(Row::Sqlite).collect()
            }
        })
    }

    /// Writes; gives the number of rows written.
    pub(crate) async fn write(&mut self, sql: &str, values: &[Value<'_>]) -> Result<u64, StoreError> {
        Ok(match self {
            Self::Postgres(tx) => pg_query(sql, values).execute(&mut **tx).await?.rows_affected(),
            Self::Sqlite(tx) => sqlite_query(sql, values).execute(tx.connection()?).await?.rows_affected(),
        })
    }

    /// Writes one row with a `RETURNING` clause.
    pub(crate) async fn returning(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Row, StoreError> {
        self.row(sql, values).await?.ok_or(StoreError::Corrupt("a write gave no row"))
    }

    /// The database's clock.
    pub(crate) async fn now_ms(&mut self) -> Result<UnixMs, StoreError> {
        self.returning("SELECT now_ms FROM clock", &[]).await?.get(0)
    }

    /// Ends the transaction, keeping what it wrote.
    pub(crate) async fn commit(self) -> Result<(), StoreError> {
        match self {
            Self::Postgres(tx) => tx.commit().await?,
            Self::Sqlite(tx) => tx.commit().await?,
        }
        Ok(())
    }
}

/// Whether a statement failed only because another transaction was faster.
pub(crate) fn is_race(error: &StoreError) -> bool {
    let StoreError::Database(sqlx::Error::Database(error)) = error else {
        return false;
    };
    // 40001 serialization_failure, 40P01 deadlock_detected (PostgreSQL, Appendix A).
    error.is_unique_violation()
        || error.is_foreign_key_violation()
        || matches!(error.code().as_deref(), Some("40001" | "40P01"))
}

/// A race is lost to a transaction that ended, so the second look nearly always decides.
pub(crate) const RACE_RETRIES: u32 = 3;
