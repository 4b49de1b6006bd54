//! The stores under test: on SQLite in a directory of their own, on Postgres in a database of their own.

use std::{
    future::Future,
    io::Write,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    pin::Pin,
    process::Command,
    sync::{
        Arc, Once,
        atomic::{AtomicU32, Ordering},
    },
};

use control_plane::store::{
    AkName, AppraiserStore, Conflict, PolicyId, RegistrarStore, StoreError, TenantStore, VerifierStore, open_registrar,
    open_tenant, open_verifier,
};
use protocol::{
    bytes::Array,
    id::{JoinId, NodeId, SealingId},
};
use sqlx::{Connection, Executor};

/// The three stores, opened, their tables made.
pub(crate) struct Stores {
    pub(crate) registrar: Arc<dyn RegistrarStore>,
    pub(crate) verifier: Arc<dyn VerifierStore>,
    pub(crate) tenant: Arc<dyn TenantStore>,
    pub(crate) urls: [String; 3],
}

impl Stores {
    /// Opens them without making tables.
    pub(crate) async fn open(urls: &[String; 3]) -> Self {
        let [registrar, verifier, tenant] = urls;
        Self {
            registrar: open_registrar(registrar).await.unwrap(),
            verifier: open_verifier(verifier).await.unwrap(),
            tenant: open_tenant(tenant).await.unwrap(),
            urls: urls.clone(),
        }
    }

    pub(crate) async fn migrate(&self) -> Result<(), StoreError> {
        self.registrar.migrate().await?;
        self.verifier.migrate().await?;
        self.tenant.migrate().await
    }

    pub(crate) async fn close(&self) {
        self.registrar.close().await;
        self.verifier.close().await;
        self.tenant.close().await;
    }

    /// Whether these are Postgres's.
    pub(crate) fn is_postgres(&self) -> bool {
        self.urls[0].starts_with("postgres")
    }

    /// Statements past the store, on the registrar's tables.
    pub(crate) async fn raw(&self, sql: &str) {
        if self.is_postgres() {
            let mut connection = sqlx::PgConnection::connect(&self.urls[0]).await.unwrap();
            connection.execute("SET search_path TO registrar").await.unwrap();
            connection.execute(sql).await.unwrap();
            connection.close().await.unwrap();
        } else {
            let mut connection = sqlx::SqliteConnection::connect(&self.urls[0]).await.unwrap();
            connection.execute(sql).await.unwrap();
            connection.close().await.unwrap();
        }
    }

    /// Places without tables: new files beside these, or this database with its schemas dropped.
    pub(crate) async fn without_tables(&self) -> [String; 3] {
        if self.is_postgres() {
            for role in ["registrar", "verifier", "tenant"] {
                self.raw(&format!("DROP SCHEMA {role} CASCADE")).await;
            }
            return self.urls.clone();
        }
        self.urls.clone().map(|url| format!("{url}-fresh"))
    }

    /// What verifier and tenant have in common is tested on both.
    pub(crate) fn appraisers(&self) -> [&dyn AppraiserStore; 2] {
        [&*self.verifier, &*self.tenant]
    }
}

type Test = for<'a> fn(&'a Stores) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Runs a test on SQLite.
pub(crate) fn on_sqlite(test: Test) {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let urls = ["registrar", "verifier", "tenant"]
            .map(|role| format!("sqlite:{}", dir.path().join(format!("{role}.db")).display()));
        let stores = Stores::open(&urls).await;
        stores.migrate().await.unwrap();
        test(&stores).await;
        stores.close().await;
    });
}

/// Runs a test on Postgres, in a fresh database that is dropped however the test ends; or says once that it cannot.
pub(crate) fn on_postgres(test: Test) {
    let Ok(server) = std::env::var("TREFOIL_TEST_POSTGRES") else {
        static SAID: Once = Once::new();
        SAID.call_once(|| {
            say("skipped: Postgres store suite (TREFOIL_TEST_POSTGRES is not set; cargo xtask test sets it)\n");
        });
        return;
    };
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("trefoil_test_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let admin = |statement: String| {
        runtime().block_on(async {
            let mut connection = sqlx::PgConnection::connect(&server).await.unwrap();
            connection.execute(statement.as_str()).await.unwrap();
            connection.close().await.unwrap();
        });
    };
    admin(format!("CREATE DATABASE {name} TEMPLATE template0"));
    let (address, _) = server.rsplit_once('/').expect("the URL names a database");
    let url = format!("{address}/{name}");
    let result = catch_unwind(AssertUnwindSafe(|| {
        runtime().block_on(async {
            let stores = Stores::open(&[url.clone(), url.clone(), url]).await;
            stores.migrate().await.unwrap();
            test(&stores).await;
            stores.close().await;
        });
    }));
    admin(format!("DROP DATABASE {name} WITH (FORCE)"));
    if let Err(panic) = result {
        resume_unwind(panic);
    }
}

/// Two threads, so that races are races.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Past the harness's capture, which keeps what passing tests print to itself.
fn say(line: &str) {
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// A file system of 1 MiB.
pub(crate) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Mounts it; says so and gives `None` where that is not allowed.
    pub(crate) fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(dir.path()).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(dir));
        }
        say("skipped: full disk (mounting a tmpfs is not allowed here)\n");
        None
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn grow(&self) {
        let grown = Command::new("mount").args(["-o", "remount,size=8m"]).arg(self.path()).status().unwrap();
        assert!(grown.success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the store may still hold its file.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

pub(crate) fn node(number: u8) -> NodeId {
    NodeId([number; 32])
}

pub(crate) fn join(number: u8) -> JoinId {
    JoinId([number; 32])
}

pub(crate) fn sealing_id(number: u8) -> SealingId {
    SealingId([number; 16])
}

pub(crate) fn ak(number: u8) -> AkName {
    Array([number; 34])
}

pub(crate) fn policy(number: u8) -> PolicyId {
    Array([number; 32])
}

/// The rule that a write would have broken.
#[track_caller]
pub(crate) fn conflict<T: std::fmt::Debug>(result: Result<T, StoreError>) -> Conflict {
    match result {
        Err(StoreError::Conflict(conflict)) => conflict,
        other => panic!("no conflict: {other:?}"),
    }
}

#[track_caller]
pub(crate) fn assert_not_found<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    assert!(matches!(result, Err(StoreError::NotFound(_))), "{result:?}");
}

/// Of two results, one succeeded; the other's conflict.
#[track_caller]
pub(crate) fn loser<T: std::fmt::Debug>(first: Result<T, StoreError>, second: Result<T, StoreError>) -> Conflict {
    match (first, second) {
        (Ok(_), lost) | (lost, Ok(_)) => conflict(lost),
        both => panic!("nobody won: {both:?}"),
    }
}
