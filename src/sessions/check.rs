//! Checks whether the store's servers are suitable for sessions.

use std::sync::Arc;

use tokio::time::{Instant, timeout_at};

use crate::budget::Budget;
use crate::check::{Finding, Report};
use crate::commands::Commands;
use crate::error::Result;
use crate::record::codec;
use crate::record::tag::Tag;
use crate::record::token::SessionId;
use crate::settings::{Sessions, Settings};
use crate::store::{Probe, ProbeSettings, TAG_LEN};

impl Sessions {
    /// Examines the servers behind the store. Call this at start-up, before the process receives traffic.
    ///
    /// The report lists the servers and their versions. It states whether the user that connects to the store
    /// may run every command that sessions need, how long a read takes, and whether the servers'
    /// configuration protects sessions from being lost. The check tries the commands on keys of its own in
    /// the namespace. They expire within ten seconds. No other record is read or written.
    ///
    /// The check takes at most twice the configured [`timeout`](crate::Builder::timeout) and never fails: if
    /// a server does not answer, the report contains a finding about it. If the user that connects to the
    /// store may not run a command that only the check needs (`INFO`, `CONFIG`), the report contains a note.
    /// The check sends a few dozen commands to each server, so do not call it for an orchestrator's probes;
    /// use [`ping`](Self::ping) for those.
    ///
    /// ```
    /// # #[cfg(feature = "memory")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use unsticky::Sessions;
    /// use unsticky::check::Level;
    ///
    /// let sessions = Sessions::builder(unsticky::connect("memory:")?).build()?;
    /// let report = sessions.check().await;
    /// println!("{report}");
    /// assert!(report.first_error().is_none());
    /// // Sessions in memory are for development.
    /// assert_eq!(report.level(), Level::Warning);
    /// # Ok(())
    /// # }
    /// # #[cfg(not(feature = "memory"))]
    /// # fn main() {}
    /// ```
    #[doc(alias("health", "readiness", "diagnose"))]
    pub async fn check(&self) -> Report {
        let Settings { store, options, .. } = self.settings();
        let end = Instant::now() + 2 * options.timeout;
        // Each part of the check stops a little earlier, so that it can report that it got no answer.
        let probe = Probe::new(self.probe_settings(), end - options.timeout / 8);
        let examined = async {
            match store.diagnosis() {
                Some(diagnosis) => diagnosis.diagnose(&probe).await,
                None => probe.try_store(store).await,
            }
        };
        if timeout_at(end, examined).await.is_err() {
            probe.report(Finding::error(
                "unanswered",
                "The check did not finish in time.",
                "Check whether the store's servers are running and can be reached from here.",
            ));
        }
        Report::new(probe.into_findings())
    }

    /// Checks that the store answers, for an orchestrator's readiness probes.
    ///
    /// This method reads a key that does not exist. It sends one command and takes at most the configured
    /// [`timeout`](crate::Builder::timeout). If the command fails, it is
    /// [retried](crate::Builder::command_retries) like any other. In a Redis Cluster, or with several
    /// Memcached servers, each call asks one master or server, chosen at random.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let session = unsticky::Session::detached();
    /// assert!(session.sessions().ping().await.is_ok());
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) or
    /// [`ErrorKind::Refused`](crate::ErrorKind::Refused), as for every read, and
    /// [`ErrorKind::Randomness`](crate::ErrorKind::Randomness) if no key could be generated.
    pub async fn ping(&self) -> Result<()> {
        let settings = self.settings();
        let budget = Budget::new(settings.options.timeout);
        let key = settings.key(SessionId::random(&*settings.entropy)?);
        Commands::new(settings, &budget).load(&key).await.map(drop)
    }

    fn probe_settings(&self) -> ProbeSettings {
        let settings = self.settings();
        ProbeSettings {
            prefix: settings.key_prefix.clone(),
            record: codec::tombstone(Tag([0; TAG_LEN]), settings.now()),
            clock: Arc::clone(&settings.clock),
            entropy: Arc::clone(&settings.entropy),
            timeout: settings.options.timeout,
            max_record_bytes: settings.options.max_record,
        }
    }
}
