//! Chooses a random running process for each request.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// One process of the shop, and its address.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) process: u32,
    pub(crate) framework: Framework,
    pub(crate) address: SocketAddr,
    requests: AtomicU64,
    /// Set before the signal is sent, so that a user who gets no answer knows why.
    killed: AtomicBool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framework {
    Axum,
    Actix,
}

impl Framework {
    pub(crate) const ALL: [Self; 2] = [Self::Axum, Self::Actix];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Axum => "axum",
            Self::Actix => "actix-web",
        }
    }
}

impl Instance {
    pub(crate) fn new(process: u32, framework: Framework, address: SocketAddr) -> Self {
        let requests = AtomicU64::new(0);
        Self { process, framework, address, requests, killed: AtomicBool::new(false) }
    }

    pub(crate) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn about_to_be_killed(&self) {
        self.killed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn was_killed(&self) -> bool {
        self.killed.load(Ordering::SeqCst)
    }
}

/// The running processes. Like any load balancer, this one learns only after a delay that a process was
/// killed.
#[derive(Debug, Default)]
pub(crate) struct Balancer(RwLock<Vec<Arc<Instance>>>);

impl Balancer {
    pub(crate) fn add(&self, instance: Arc<Instance>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).push(instance);
    }

    pub(crate) fn remove(&self, process: u32) {
        let mut live = self.0.write().unwrap_or_else(PoisonError::into_inner);
        live.retain(|instance| instance.process != process);
    }

    /// Returns a random process, or `None` if no process is running.
    pub(crate) fn pick(&self) -> Option<Arc<Instance>> {
        let live = self.0.read().unwrap_or_else(PoisonError::into_inner);
        fastrand::choice(live.iter()).cloned()
    }

    /// Returns two random processes, which differ if at least two are running.
    pub(crate) fn pick_two(&self) -> Option<[Arc<Instance>; 2]> {
        let live = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let two = fastrand::choose_multiple(live.iter(), 2);
        let (first, last) = (two.first()?, two.last()?);
        Some([Arc::clone(first), Arc::clone(last)])
    }
}
