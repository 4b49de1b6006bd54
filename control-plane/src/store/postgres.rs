//! Postgres: one schema per role, two small pools per role, migrations. The statements are in [`super::sql`].

use std::{str::FromStr, time::Duration};

use protocol::id::Role;
use sqlx::{
    ConnectOptions, PgPool,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use super::{
    StoreError,
    sql::{self, Db, Durability, Engine},
};

/// One role's connections; together at most [`DURABLE_CONNECTIONS`] + [`SOON_CONNECTIONS`].
pub(crate) struct Pools {
    /// Reads, and writes that are on the disk when they return.
    pub(crate) durable: PgPool,
    /// `synchronous_commit = off`.
    soon: PgPool,
}

impl Pools {
    /// The pool for writes of this durability.
    pub(crate) fn writing(&self, durability: Durability) -> &PgPool {
        match durability {
            Durability::Now => &self.durable,
            Durability::Soon => &self.soon,
        }
    }

    /// Makes the role's schema and tables. Several processes may do so at once.
    pub(crate) async fn migrate(&self, role: Role) -> Result<(), StoreError> {
        // Asked first, because a database user who owns only its own schema may not create one, not even IF NOT EXISTS.
        let exists = "SELECT 1 FROM pg_namespace WHERE nspname = $1";
        let mut result = Ok(());
        for _ in 0..=sql::RACE_RETRIES {
            if sqlx::query(exists).bind(role.name()).fetch_optional(&self.durable).await?.is_some() {
                result = Ok(());
                break;
            }
            // A role's name is one of three constants. IF NOT EXISTS still fails when two create it in one moment.
            let create = format!("CREATE SCHEMA IF NOT EXISTS {}", role.name());
            result = sqlx::query(&create).execute(&self.durable).await.map(|_| ()).map_err(StoreError::from);
            if !result.as_ref().is_err_and(sql::is_race) {
                break;
            }
        }
        result?;
        let mut migrator = migrations(role);
        migrator.set_ignore_missing(true);
        Ok(migrator.run(&self.durable).await?)
    }

    /// Ends all connections.
    pub(crate) async fn close(&self) {
        self.durable.close().await;
        self.soon.close().await;
    }
}

/// Opens a role's schema in the database that `url` (`postgres://…`) names; tables are not made here.
///
/// # Errors
/// [`StoreError::Database`] if the URL is none or the server does not answer.
pub(crate) async fn open(role: Role, url: &str) -> Result<Db, StoreError> {
    let options = PgConnectOptions::from_str(url)?
        .application_name(&format!("trefoil {role}"))
        // An abandoned transaction must not hold its locks for longer than anybody waits for them.
        .options([("search_path", role.name()), ("idle_in_transaction_session_timeout", "30s")])
        .disable_statement_logging();
    let soon = options.clone().options([("synchronous_commit", "off")]);
    Ok(Db {
        role,
        engine: Engine::Postgres(Pools {
            durable: pool(DURABLE_CONNECTIONS).connect_with(options).await?,
            soon: pool(SOON_CONNECTIONS).connect_lazy_with(soon),
        }),
    })
}

fn pool(connections: u32) -> PgPoolOptions {
    PgPoolOptions::new().max_connections(connections).acquire_timeout(ACQUIRE_TIMEOUT)
}

fn migrations(role: Role) -> Migrator {
    match role {
        Role::Registrar => sqlx::migrate!("./migrations/postgres/registrar"),
        Role::Verifier => sqlx::migrate!("./migrations/postgres/verifier"),
        Role::Tenant => sqlx::migrate!("./migrations/postgres/tenant"),
    }
}

/// Three roles in one process stay below 20 connections.
const DURABLE_CONNECTIONS: u32 = 4;
/// Renewals and history are short statements: two connections carry thousands a second.
const SOON_CONNECTIONS: u32 = 2;
/// How long a call waits for a connection before it says that the database does not answer.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
