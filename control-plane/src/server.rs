//! `trefoil serve`: opens the stores, starts the roles, the gateway and the API, and stops them in order.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use protocol::id::Role;
use rustls::{ServerConfig, crypto::ring, version::TLS13};
use sha2::{Digest as _, Sha256};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    app::App,
    config::Config,
    ek::EkTrust,
    gateway::{Gateway, GatewayOptions, Registry},
    http,
    link::{RegistrarLink, VerifierLink},
    registrar::Registrar,
    store,
    tenant::Tenant,
    verifier::Verifier,
};

/// How often the bundles of EK roots are looked at.
const EK_ROOTS_INTERVAL: Duration = Duration::from_secs(2);

/// What the command line may say over the settings.
#[derive(Clone, Debug, Default)]
pub struct ServeOptions {
    /// Where agents are listened for.
    pub gateway: Option<SocketAddr>,
    /// Where the API listens.
    pub api: Option<SocketAddr>,
    /// EK manufacturers' certificates, for registrar and tenant.
    pub ek_roots: Option<PathBuf>,
}

/// Runs until `stop` turns true; then agents are told to come back, open requests are answered, and all is closed.
///
/// # Errors
/// What could not be opened, read or bound, in words for the operator.
pub async fn run(config: &Config, options: ServeOptions, mut stop: watch::Receiver<bool>) -> anyhow::Result<()> {
    let app = open(config, &options).await?;
    let identity = config.server_identity()?;
    let server_certificate: [u8; 32] = Sha256::digest(&identity.certificate).into();
    let tls = |alpn: &[&[u8]]| -> anyhow::Result<Arc<ServerConfig>> {
        let mut tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![identity.certificate.clone()], identity.key.clone_key())
            .context("the server's certificate and key do not fit each other")?;
        tls.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        // Agents do not resume, and a ticket is one more record.
        tls.send_tls13_tickets = 0;
        Ok(Arc::new(tls))
    };
    let mut agents_tls = tls(&[b"coap"])?;
    if let Some(tls) = Arc::get_mut(&mut agents_tls) {
        // A record of ours has to fit the agent's buffer.
        tls.max_fragment_size = Some(protocol::limits::MAX_RECORD_LEN);
    }
    let gateway_at = options.gateway.unwrap_or(config.gateway);
    let listener =
        TcpListener::bind(gateway_at).await.with_context(|| format!("the gateway cannot listen on {gateway_at}"))?;
    let api_at = options.api.unwrap_or(config.api);
    let api = TcpListener::bind(api_at).await.with_context(|| format!("the API cannot listen on {api_at}"))?;
    println!("gateway listening on {}", listener.local_addr()?);
    println!("api listening on {}", api.local_addr()?);

    app.tenant.sync_all().await.context("the other roles could not be told of the tenant's nodes")?;
    let gateway = Gateway::new(
        app.registrar.clone(),
        app.verifier.clone(),
        app.tenant.clone(),
        app.registry.clone(),
        server_certificate,
        GatewayOptions::default(),
    );
    let agents = tokio::spawn(gateway.run(listener, agents_tls, stop.clone()));
    let ek_roots = tokio::spawn(watch_ek_roots(app.clone(), stop.clone()));
    let operators = tokio::spawn(http::serve(api, tls(&[b"http/1.1"])?, http::router(app.clone()), stop.clone()));
    // The sender lives as long as this call's caller waits.
    _ = stop.wait_for(|stop| *stop).await;
    tracing::info!("stopping");
    agents.await.context("the gateway ended badly")?;
    operators.await.context("the API ended badly")?;
    ek_roots.await.context("the watch over the EK roots ended badly")?;
    Ok(())
}

/// Opens stores and roles.
///
/// # Errors
/// As [`run`].
pub async fn open(config: &Config, options: &ServeOptions) -> anyhow::Result<Arc<App>> {
    let registrar_store =
        store::open_registrar(config.registrar.db.expose()).await.context("the registrar's database")?;
    let verifier_store = store::open_verifier(config.verifier.db.expose()).await.context("the verifier's database")?;
    let tenant_store = store::open_tenant(config.tenant.db.expose()).await.context("the tenant's database")?;
    registrar_store.migrate().await.context("the registrar's database")?;
    verifier_store.migrate().await.context("the verifier's database")?;
    tenant_store.migrate().await.context("the tenant's database")?;

    let registry = Arc::<Registry>::default();
    let roots = |own: &Option<PathBuf>| -> anyhow::Result<Arc<EkTrust>> {
        let path = options.ek_roots.as_ref().or(own.as_ref()).cloned();
        let shown = path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        Ok(Arc::new(EkTrust::load(path).with_context(|| format!("EK roots in {shown}"))?))
    };
    let registrar =
        Registrar::new(registrar_store, config.role_key(Role::Registrar)?, roots(&config.registrar.ek_roots)?);
    let registrar = Arc::new(registrar.keeping_strangers(config.quarantine));
    let registrar_link: Arc<dyn RegistrarLink> = registrar.clone();
    let verifier = Verifier::new(
        verifier_store,
        config.role_key(Role::Verifier)?,
        registrar_link.clone(),
        registry.clone(),
        config.policy_trust(Role::Verifier).context("[verifier] policy_keys")?,
    );
    let verifier = Arc::new(verifier.keeping_ima(config.verifier.keep_ima));
    let verifier_link: Arc<dyn VerifierLink> = verifier.clone();
    let tenant = Tenant::new(
        tenant_store,
        config.role_key(Role::Tenant)?,
        roots(&config.tenant.ek_roots)?,
        registrar_link,
        verifier_link,
        registry.clone(),
        config.policy_trust(Role::Tenant).context("[tenant] policy_keys")?,
    );
    let tenant = Arc::new(tenant.keeping_ima(config.tenant.keep_ima));
    Ok(Arc::new(App { registrar, verifier, tenant, registry }))
}

/// Judges hardware by the bundles as they are at the start, and again whenever one changes; whoever is concerned has a
/// round at once.
async fn watch_ek_roots(app: Arc<App>, mut stop: watch::Receiver<bool>) {
    let mut due = true;
    loop {
        if due {
            match app.judge_hardware_anew().await {
                Ok(()) => due = false,
                Err(error) => tracing::error!(error = %crate::refusal::chain(&error), "hardware is not judged yet"),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(EK_ROOTS_INTERVAL) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let (registrar, tenant) = (app.registrar.ek_trust().clone(), app.tenant.ek_trust().clone());
        let looked = tokio::task::spawn_blocking(move || (registrar.refresh(), tenant.refresh())).await;
        let Ok((registrar, tenant)) = looked else { continue };
        let detail = |error: crate::ek::EkRootsError| {
            format!("the changed EK roots are not used, the old ones stay: {}", crate::refusal::chain(&error))
        };
        match registrar {
            Ok(changed) => due |= changed,
            Err(error) => app.registrar.record(None, "ek_roots_unreadable", detail(error)).await,
        }
        match tenant {
            Ok(changed) => due |= changed,
            Err(error) => app.tenant.ek_roots_unreadable(&detail(error)).await,
        }
    }
}
