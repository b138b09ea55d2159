//! A process of the shop, from inside.

use std::io::Read as _;
use std::net::TcpListener;
use std::thread;

use actix_web::{App, HttpServer};
use unsticky::Sessions;
use unsticky::actix::SessionMiddleware;

use crate::process::Plan;
use crate::{Result, shop_actix, shop_axum};

/// Serves until standard input ends, which it does with whoever started this process.
pub(crate) fn serve(plan: Plan) -> Result<()> {
    let sessions = shop_axum::shop::sessions().map_err(|error| error.to_string())?;
    let axum = listen(plan.axum)?;
    let actix = listen(plan.actix)?;
    let (ended, end) = std::sync::mpsc::channel();
    let spawn = |serve: Box<dyn FnOnce() -> Result<()> + Send>| {
        let ended = ended.clone();
        thread::spawn(move || ended.send(serve()));
    };
    spawn(Box::new(|| {
        std::io::stdin().read_to_end(&mut Vec::new())?;
        Ok(())
    }));
    if !axum.is_empty() {
        let sessions = sessions.clone();
        spawn(Box::new(|| serve_axum(axum, sessions)));
    }
    if !actix.is_empty() {
        spawn(Box::new(|| serve_actix(actix, sessions)));
    }
    end.recv()?
}

/// Ports that nobody else has. Whoever connects from now on waits until somebody accepts.
fn listen(ports: usize) -> Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for _ in 0..ports {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        println!("listening on http://{}", listener.local_addr()?);
        listeners.push(listener);
    }
    Ok(listeners)
}

fn serve_axum(listeners: Vec<TcpListener>, sessions: Sessions) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut servers = tokio::task::JoinSet::new();
        for listener in listeners {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let app = shop_axum::app(sessions.clone());
            servers.spawn(async { axum::serve(listener, app).await });
        }
        while let Some(server) = servers.join_next().await {
            server??;
        }
        Ok(())
    })
}

fn serve_actix(listeners: Vec<TcpListener>, sessions: Sessions) -> Result<()> {
    actix_web::rt::System::new().block_on(async {
        let mut server = HttpServer::new(move || {
            let sessions = SessionMiddleware::new(sessions.clone());
            App::new().wrap(sessions).configure(shop_actix::routes)
        })
        .workers(1)
        .disable_signals();
        for listener in listeners {
            server = server.listen(listener)?;
        }
        server.run().await?;
        Ok(())
    })
}
