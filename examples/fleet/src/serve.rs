//! Runs one process of the shop.

use std::io::{self, Read as _};
use std::net::TcpListener;
use std::thread;

use actix_web::{App, HttpServer};
use unsticky::Sessions;
use unsticky::actix::SessionMiddleware;

use crate::balancer::Framework;
use crate::{Result, shop_actix, shop_axum};

/// Serves until standard input closes, which happens when the parent process ends.
pub(crate) fn serve(framework: Framework) -> Result<()> {
    let sessions = shop_axum::shop::sessions().map_err(|error| error.to_string())?;
    // The listener gets a free port. Connections wait in its queue until the server accepts them.
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    println!("listening on http://{}", listener.local_addr()?);
    let (ended, end) = std::sync::mpsc::channel();
    let parent = ended.clone();
    thread::spawn(move || parent.send(std::io::stdin().read_to_end(&mut Vec::new()).map(drop)));
    thread::spawn(move || {
        ended.send(match framework {
            Framework::Axum => serve_axum(listener, sessions),
            Framework::Actix => serve_actix(listener, sessions),
        })
    });
    Ok(end.recv()??)
}

fn serve_axum(listener: TcpListener, sessions: Sessions) -> io::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        axum::serve(listener, shop_axum::app(sessions)).await
    })
}

fn serve_actix(listener: TcpListener, sessions: Sessions) -> io::Result<()> {
    actix_web::rt::System::new().block_on(async {
        let server = HttpServer::new(move || {
            let sessions = SessionMiddleware::new(sessions.clone());
            App::new().wrap(sessions).configure(shop_actix::routes)
        });
        server.workers(1).disable_signals().listen(listener)?.run().await
    })
}
