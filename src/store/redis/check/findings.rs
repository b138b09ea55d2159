//! Turns a server's answers into findings. These functions are pure: they send nothing.

use std::collections::HashMap;
use std::time::Duration;

use crate::check::{Finding, counted};
use crate::store::redis::check::info::{Follower, Info};
use crate::store::redis::check::role::Role;

/// A server's settings by name, as far as the server reveals them.
pub(super) type Config = HashMap<&'static str, String>;

/// The settings that findings depend on.
pub(super) const SETTINGS: [&str; 4] = [SAVE, STOP_WRITES, MIN_REPLICAS, MAX_LAG];

const SAVE: &str = "save";
const STOP_WRITES: &str = "stop-writes-on-bgsave-error";
const MIN_REPLICAS: &str = "min-replicas-to-write";
const MAX_LAG: &str = "min-replicas-max-lag";

/// The maximum age, in seconds, of a replica's last acknowledgement. A replica sends one every second.
const LAG: u64 = 3;

/// At this percentage or more, memory or connections count as scarce.
const NEARLY_ALL: u64 = 80;

/// The maximum clock difference that causes no warning.
const DIFFERENCE: time::Duration = time::Duration::SECOND;

/// Returns the findings about eviction, memory, connections, persistence and replicas, which follow from the
/// server's answers to `INFO` and `CONFIG GET`.
pub(super) fn of_server(info: &Info, config: &Config) -> Vec<Finding> {
    let findings = [
        eviction(info),
        evicted(info),
        memory(info),
        connections(info),
        persistence(info, config),
        replicas(info, config),
    ];
    findings.into_iter().flatten().collect()
}

/// Reports the server and its version.
pub(super) fn version(info: &Info) -> Option<Finding> {
    const CODE: &str = "version";
    let (name, version) = match info.text("valkey_version") {
        Some(version) => ("Valkey", version),
        None => ("Redis", info.text("redis_version")?),
    };
    let is_version = |text: &str| {
        text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_+".contains(&byte))
    };
    if version.len() > 40 || !is_version(version) {
        return None;
    }
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    let (major, minor) = (numbers.next()?, numbers.next().unwrap_or(0));
    Some(if (major, minor) < (6, 2) {
        let message = format!("It is {name} {version}, but sessions need Redis 6.2 or newer.");
        Finding::error(CODE, message, "Upgrade the server to Redis 6.2 or newer, or to Valkey.")
    } else {
        Finding::fine(CODE, format!("It is {name} {version}."))
    })
}

/// Checks whether the server has the role that the address needs.
pub(super) fn role(info: &Info, expected: Role) -> Option<Finding> {
    const CODE: &str = "role";
    let mode = mode(info)?;
    let (is_sentinel, is_node) = (mode == "sentinel", mode == "cluster");
    let is_replica = info.is("role", "slave");
    let is = match (is_sentinel, is_node, is_replica) {
        (true, ..) => "a Sentinel",
        (_, true, true) => "a node of a cluster, and a replica",
        (_, true, false) => "a node of a cluster, and a master",
        (_, _, true) => "a replica",
        _ => "a master",
    };
    let (wanted, remedy) = match expected {
        Role::Sentinel if !is_sentinel => {
            ("a Sentinel", "Name only Sentinels in the address, not the servers that they watch.")
        }
        Role::Sentinel => return Some(Finding::fine(CODE, format!("It is {is}."))),
        _ if is_sentinel => (
            "a server that keeps data",
            "Write the address as redis+sentinel://HOST:26379/MASTER, or rediss+sentinel:// with TLS.",
        ),
        Role::Node | Role::SpareNode if !is_node => (
            "a node of a cluster",
            "Begin the address of a single server with redis:// or rediss://.",
        ),
        Role::Master | Role::Replica if is_node => (
            "a single server",
            "Begin the address of a cluster with redis+cluster:// or rediss+cluster://.",
        ),
        Role::Master if is_replica => (
            "a master",
            "A replica accepts no writes. Write the host of its master into the address, or name the \
             Sentinels (redis+sentinel://HOST:26379/MASTER), which know the master.",
        ),
        Role::Replica if !is_replica => {
            let message = format!("It is {is}, but a replica was expected here.");
            let remedy = "Wait until a failover that is under way has finished. Otherwise make the \
                          server follow \
                          its master with REPLICAOF.";
            return Some(Finding::warning(CODE, message, remedy));
        }
        Role::Master | Role::Replica | Role::Node | Role::SpareNode => {
            return Some(Finding::fine(CODE, format!("It is {is}.")));
        }
    };
    Some(Finding::error(CODE, format!("It is {is}, but {wanted} was expected here."), remedy))
}

/// Checks whether the server is still loading its data, after a start or, on a replica, from its master.
pub(super) fn loading(info: &Info) -> Option<Finding> {
    let is_loading = info.is("loading", "1") || info.is("async_loading", "1");
    is_loading.then(|| {
        let message = "The server is still loading its data (loading is 1), so no session can be read or \
                       written yet.";
        Finding::error("loading", message, "Wait. If loading takes a long time, read the server's log.")
    })
}

/// Checks whether the server removes keys when its memory is full.
fn eviction(info: &Info) -> Option<Finding> {
    const CODE: &str = "eviction";
    let Some(policy) = info.text("maxmemory_policy").filter(|policy| is_word(policy)) else {
        // If `INFO` shows nothing at all, another note already says so. A Sentinel keeps no sessions.
        let is_shown = version(info).is_some() && mode(info) != Some("sentinel");
        return is_shown.then(|| {
            let message = "INFO does not show maxmemory-policy, so it is unknown whether the server \
                            removes \
                            sessions when its memory is full.";
            let remedy = "Look it up in the server's or the service's configuration: it should be \
                          noeviction.";
            Finding::note(CODE, message, remedy)
        });
    };
    if policy == "noeviction" {
        return Some(Finding::fine(
            CODE,
            "The server evicts no keys (maxmemory-policy is noeviction).",
        ));
    }
    // Every key that this crate writes has a time to live, so the policies for volatile keys also evict
    // sessions.
    let remedy = "Run CONFIG SET maxmemory-policy noeviction, and set the same in redis.conf.";
    Some(if info.number("maxmemory")? == 0 {
        let message = format!(
            "maxmemory-policy is {policy}. maxmemory is 0, so nothing is removed now, but once \
             maxmemory is \
             set, the server may remove live sessions."
        );
        Finding::note(CODE, message, remedy)
    } else {
        let message = format!(
            "maxmemory-policy is {policy}: when its memory is full, the server removes live sessions, and \
             their users are signed out."
        );
        Finding::warning(CODE, message, remedy)
    })
}

/// Checks whether the server has removed keys.
fn evicted(info: &Info) -> Option<Finding> {
    let count = info.number("evicted_keys").filter(|count| *count > 0)?;
    Some(Finding::warning(
        "evicted",
        format!(
            "The server has removed {} to make room (evicted_keys), and sessions may be among them.",
            counted(count, "key")
        ),
        "Run CONFIG SET maxmemory-policy noeviction and raise maxmemory; then reset the counter with \
         CONFIG RESETSTAT.",
    ))
}

fn memory(info: &Info) -> Option<Finding> {
    const CODE: &str = "memory";
    let (used, limit) = (info.number("used_memory")?, info.number("maxmemory")?);
    if limit == 0 {
        let used = size(used);
        let message = format!(
            "The server uses {used}, and maxmemory is 0, so only its host limits its memory."
        );
        let remedy = "Set maxmemory below the memory of the host, so that a full server refuses writes \
                      instead of being killed with all sessions.";
        return Some(Finding::note(CODE, message, remedy));
    }
    // The server subtracts this number, too, when it decides whether to refuse a write.
    let used = used.saturating_sub(info.number("mem_not_counted_for_evict").unwrap_or(0));
    let share = share(used, limit);
    let message = format!("The server uses {share} % of its memory (maxmemory is {})", size(limit));
    let remedy = "Raise maxmemory, or use redis-cli --bigkeys to find what fills it.";
    Some(match share {
        100.. if info.is("maxmemory_policy", "noeviction") && !info.is("role", "slave") => {
            Finding::error(
                CODE,
                format!("{message}, so it refuses writes and no session can be saved."),
                remedy,
            )
        }
        NEARLY_ALL.. => Finding::warning(CODE, format!("{message}."), remedy),
        _ => Finding::fine(CODE, format!("{message}.")),
    })
}

fn connections(info: &Info) -> Option<Finding> {
    const CODE: &str = "connections";
    let (count, limit) = (info.number("connected_clients")?, info.number("maxclients")?);
    let message =
        format!("The server has {count} of at most {} (maxclients)", counted(limit, "connection"));
    Some(if share(count, limit) > NEARLY_ALL {
        Finding::warning(
            CODE,
            format!("{message}. At the limit, it refuses new connections."),
            "Raise maxclients, or use CLIENT LIST to find the programs that hold many connections.",
        )
    } else {
        Finding::fine(CODE, format!("{message}."))
    })
}

/// Reports which data the server keeps across a restart, and checks whether it can write to its disk.
fn persistence(info: &Info, config: &Config) -> Option<Finding> {
    const CODE: &str = "persistence";
    const REMEDY: &str = "Read the server's log: the disk may be full, or the directory (CONFIG GET dir) \
                          not writable.";
    let has_log = info.text("aof_enabled")? == "1";
    let saves = config.get(SAVE).map(|save| !save.is_empty());
    if has_log && info.is("aof_last_write_status", "err") {
        let message = "The server cannot write its append-only file (aof_last_write_status is err), so it \
                        refuses writes and no session can be saved.";
        return Some(Finding::error(CODE, message, REMEDY));
    }
    if info.is("rdb_last_bgsave_status", "err") {
        let failed = "The last snapshot failed (rdb_last_bgsave_status is err)";
        let stops = config.get(STOP_WRITES).map(|stops| stops == "yes");
        return Some(match (saves, stops) {
            (Some(true), Some(true)) => Finding::error(
                CODE,
                format!(
                    "{failed}, so the server refuses writes and no session can be saved ({STOP_WRITES} \
                     is yes)."
                ),
                REMEDY,
            ),
            (Some(false), _) | (_, Some(false)) => {
                let message = format!("{failed}, so a restart brings back older sessions.");
                Finding::warning(CODE, message, REMEDY)
            }
            _ => Finding::warning(
                CODE,
                format!("{failed}, so the server may refuse writes ({STOP_WRITES} is unknown)."),
                REMEDY,
            ),
        });
    }
    let remedy = "If sessions must survive a restart, run CONFIG SET appendonly yes and set the same in redis.conf.";
    Some(match (has_log, saves) {
        (true, _) => {
            Finding::fine(CODE, "The server keeps an append-only file (appendonly is yes).")
        }
        (_, Some(true)) => {
            let message = "The server only makes snapshots: a restart undoes the changes since the \
                            last one, so \
                            users who signed out may be signed in again.";
            Finding::note(CODE, message, remedy)
        }
        (_, Some(false)) => {
            let message = "The server keeps nothing on its disk: a restart ends all sessions.";
            Finding::note(CODE, message, remedy)
        }
        (_, None) => {
            let message = "The server keeps no append-only file, and it is unknown whether it makes \
                            snapshots.";
            Finding::note(CODE, message, remedy)
        }
    })
}

fn replicas(info: &Info, config: &Config) -> Option<Finding> {
    const CODE: &str = "replicas";
    if info.is("role", "slave") {
        let is_up = info.text("master_link_status")? == "up";
        return Some(if is_up {
            Finding::fine(CODE, "The replica is connected to its master.")
        } else {
            let message = "The replica has lost its master (master_link_status is down).";
            Finding::warning(
                CODE,
                message,
                "Check whether the master is running and can be reached from the replica.",
            )
        });
    }
    let count = info.number("connected_slaves")?;
    let followers = info.followers();
    if let Some(finding) = too_few(info, config, &followers) {
        return Some(finding);
    }
    if count == 0 {
        let message = "The server has no replica: while it is down, sessions are unavailable.";
        let remedy = "If sessions must stay available then, run replicas with Sentinel, or a cluster \
                      with replicas.";
        return Some(Finding::note(CODE, message, remedy));
    }
    let offset = info.number("master_repl_offset").unwrap_or(0);
    let behind = followers.iter().map(|follower| offset.saturating_sub(follower.offset)).max();
    let lag = followers.iter().filter_map(|follower| follower.lag).max().unwrap_or(0);
    let are_well = followers.iter().all(|follower| follower.is_within(LAG));
    let offline = followers.iter().filter(|follower| !follower.is_online).count();
    let behind = size(behind.unwrap_or(0));
    let message = format!(
        "The server has {}, {}; the slowest is {behind} behind and last confirmed data {lag} s ago.",
        counted(count, "connected replica"),
        if offline == 0 { "all online".to_owned() } else { format!("{offline} not online") },
    );
    Some(if are_well {
        Finding::fine(CODE, message)
    } else {
        let remedy = "A failover would lose what the replica has not received: check whether the \
                      replica is \
                      overloaded, stopped or cut off.";
        Finding::warning(CODE, message, remedy)
    })
}

/// Checks whether a master refuses writes because too few replicas keep up.
fn too_few(info: &Info, config: &Config, followers: &[Follower]) -> Option<Finding> {
    let number = |name| config.get(name).and_then(|value| value.parse::<u64>().ok());
    let (wanted, max_lag) = (number(MIN_REPLICAS)?, number(MAX_LAG)?);
    if wanted == 0 || max_lag == 0 {
        return None;
    }
    let good = info.number("min_slaves_good_slaves");
    let in_time = || followers.iter().filter(|follower| follower.is_within(max_lag)).count();
    let good = good.unwrap_or_else(|| u64::try_from(in_time()).unwrap_or(u64::MAX));
    (good < wanted).then(|| {
        Finding::error(
            "replicas",
            format!(
                "{} confirmed data within {max_lag} s ({MAX_LAG}), but {MIN_REPLICAS} is {wanted}, so the \
                 server refuses writes and no session can be saved.",
                counted(good, "replica")
            ),
            "Start the replicas that are down, or run CONFIG SET min-replicas-to-write with a lower \
             number.",
        )
    })
}

impl Follower {
    fn is_within(&self, seconds: u64) -> bool {
        self.is_online && self.lag.is_some_and(|lag| lag <= seconds)
    }
}

/// Judges by how much this process's clock is ahead of the server's. The round trip limits the accuracy.
pub(super) fn clock(ahead: time::Duration, round_trip: Duration) -> Finding {
    const CODE: &str = "clock";
    let uncertain = time::Duration::try_from(round_trip / 2).unwrap_or(time::Duration::MAX);
    let (direction, when) = match ahead.is_negative() {
        true => ("behind", "late"),
        false => ("ahead of", "early"),
    };
    let amount = span(ahead.unsigned_abs());
    let message = format!("This process's clock is {amount} {direction} the server's.");
    if ahead.abs() <= DIFFERENCE.saturating_add(uncertain) {
        return Finding::fine(CODE, message);
    }
    let remedy = format!(
        "Synchronise both clocks with NTP. If this process's clock is wrong, sessions expire {amount} too \
         {when}."
    );
    Finding::warning(CODE, message, remedy)
}

/// Reports whether compare-and-set uses the server's own command or a script, and which command deletes a
/// record.
pub(super) fn compare_and_set(sets: bool, deletes: Option<&str>) -> Finding {
    let message = match (sets, deletes) {
        (true, Some(delete)) => {
            format!("The server uses its own commands for compare-and-set (SET IFEQ and {delete}).")
        }
        (true, None) => {
            "The server replaces records with its own command (SET IFEQ) and deletes them with a script."
                .to_owned()
        }
        (false, Some(delete)) => format!(
            "The server replaces records with a script and deletes them with its own command ({delete})."
        ),
        (false, None) => "The server uses a script for compare-and-set.".to_owned(),
    };
    Finding::fine("compare_and_set", message)
}

/// Returns the mode of the server: `standalone`, `cluster` or `sentinel`.
fn mode(info: &Info) -> Option<&str> {
    info.text("redis_mode").or_else(|| info.text("server_mode"))
}

fn is_word(text: &str) -> bool {
    text.len() <= 40 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Returns the percentage, rounded down.
fn share(part: u64, whole: u64) -> u64 {
    part.saturating_mul(100) / whole.max(1)
}

/// Formats a number of bytes in a readable unit.
fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.iter().find(|unit| bytes >= unit.0) {
        Some((unit, name)) => format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes} bytes"),
    }
}

/// Formats a duration in a readable unit.
fn span(time: Duration) -> String {
    match time.as_secs() {
        0 => format!("{} ms", time.as_millis()),
        seconds @ 1..300 => format!("{seconds} s"),
        seconds @ 300..10_800 => format!("{} min", seconds / 60),
        seconds @ 10_800..259_200 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Level;

    #[track_caller]
    fn assert(finding: Option<Finding>, level: Level, words: &str) {
        let finding = finding.unwrap();
        assert_eq!(finding.level(), level, "{finding}");
        assert!(finding.message().contains(words), "{finding}");
    }

    #[test]
    fn version_is_reported_for_redis_and_valkey() {
        for (info, level, message) in [
            ("redis_version:6.2.0", Level::Fine, "It is Redis 6.2.0."),
            ("redis_version:8.4", Level::Fine, "It is Redis 8.4."),
            ("redis_version:7.2.4\nvalkey_version:9.0.1", Level::Fine, "It is Valkey 9.0.1."),
            ("redis_version:6.0.16", Level::Error, "It is Redis 6.0.16, but sessions need"),
            ("redis_version:5.0", Level::Error, "It is Redis 5.0, but"),
        ] {
            assert(version(&Info::parse(info)), level, message);
        }
        for strange in ["", "redis_version:", "redis_version:7.0 \u{1b}[2J", "redis_version:new"] {
            assert_eq!(version(&Info::parse(strange)), None, "{strange:?}");
        }
    }

    #[test]
    fn role_is_compared_with_expected_role() {
        let master = "redis_mode:standalone\nrole:master";
        // Valkey uses a different name for the mode.
        let replica = "server_mode:standalone\nrole:slave";
        let node = "redis_mode:cluster\nrole:slave";
        let sentinel = "redis_mode:sentinel";
        for (info, role_levels) in [
            (master, [Level::Fine, Level::Warning, Level::Error, Level::Error]),
            (replica, [Level::Error, Level::Fine, Level::Error, Level::Error]),
            (node, [Level::Error, Level::Error, Level::Fine, Level::Error]),
            (sentinel, [Level::Error, Level::Error, Level::Error, Level::Fine]),
        ] {
            let roles = [Role::Master, Role::Replica, Role::Node, Role::Sentinel];
            for (expected, level) in roles.into_iter().zip(role_levels) {
                assert(role(&Info::parse(info), expected), level, "It is a");
            }
        }
        assert_eq!(role(&Info::default(), Role::Master), None);
    }

    #[test]
    fn unknown_eviction_policy_is_a_note() {
        let shown = Info::parse("redis_version:7.0.0\nredis_mode:standalone\nmaxmemory:1");
        assert(eviction(&shown), Level::Note, "does not show maxmemory-policy");
        let sentinel = Info::parse("redis_version:7.0.0\nredis_mode:sentinel");
        assert_eq!(eviction(&sentinel), None);
        assert_eq!(eviction(&Info::default()), None);
    }

    #[test]
    fn failed_write_to_disk_is_an_error_if_server_refuses_writes() {
        let config = |settings: &[(&'static str, &str)]| -> Config {
            settings.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
        };
        let (saves, stops) = ((SAVE, "3600 1"), (STOP_WRITES, "yes"));
        let failed = "aof_enabled:0\nrdb_last_bgsave_status:err";
        for (info, config, level) in [
            ("aof_enabled:1\naof_last_write_status:err", config(&[]), Level::Error),
            ("aof_enabled:1\naof_last_write_status:ok", config(&[]), Level::Fine),
            (failed, config(&[saves, stops]), Level::Error),
            (failed, config(&[saves, (STOP_WRITES, "no")]), Level::Warning),
            (failed, config(&[(SAVE, ""), stops]), Level::Warning),
            (failed, config(&[]), Level::Warning),
            ("aof_enabled:0\nrdb_last_bgsave_status:ok", config(&[]), Level::Note),
        ] {
            assert(persistence(&Info::parse(info), &config), level, "");
        }
    }

    #[test]
    fn replica_that_is_not_online_is_a_warning() {
        let master = "role:master\nmaster_repl_offset:3000\nconnected_slaves:2\n\
                      slave0:state=online,offset=2000,lag=1\n";
        for (other, level, words) in [
            ("state=online,offset=500,lag=3", Level::Fine, "2.4 KiB behind"),
            ("state=online,offset=3000,lag=4", Level::Warning, "1000 bytes behind"),
            ("state=wait_bgsave,offset=0,lag=0", Level::Warning, "1 not online;"),
        ] {
            let info = Info::parse(&format!("{master}slave1:{other}\n"));
            assert(replicas(&info, &Config::new()), level, words);
        }
        let lost = Info::parse("role:slave\nmaster_link_status:down");
        assert(replicas(&lost, &Config::new()), Level::Warning, "lost its master");
    }

    #[test]
    fn full_replica_still_accepts_its_masters_writes() {
        let full = "used_memory:20\nmaxmemory:10\nmaxmemory_policy:noeviction\n";
        for (more, level) in [
            ("role:master", Level::Error),
            ("role:slave", Level::Warning),
            // Buffers for replicas and the append-only file are not counted.
            ("role:master\nmem_not_counted_for_evict:13", Level::Fine),
        ] {
            assert(memory(&Info::parse(&format!("{full}{more}"))), level, "% of its memory");
        }
    }

    #[test]
    fn clock_difference_is_judged_within_the_uncertainty_of_the_round_trip() {
        let seconds = time::Duration::seconds;
        let round_trip = Duration::from_secs;
        for (ahead, round_trip, level, words) in [
            (seconds(1), round_trip(0), Level::Fine, "is 1 s ahead of the server's."),
            (seconds(-1), round_trip(0), Level::Fine, "is 1 s behind the server's."),
            (seconds(2), round_trip(0), Level::Warning, "is 2 s ahead of"),
            (seconds(2), round_trip(2), Level::Fine, "is 2 s ahead of"),
            (seconds(-40_000), round_trip(2), Level::Warning, "is 11 h behind"),
        ] {
            assert(Some(clock(ahead, round_trip)), level, words);
        }
    }

    #[test]
    fn way_to_compare_and_set_is_reported_for_each_kind_of_server() {
        let told = |sets, deletes| compare_and_set(sets, deletes).message().to_owned();
        assert_eq!(
            told(true, Some("DELEX")),
            "The server uses its own commands for compare-and-set (SET IFEQ and DELEX)."
        );
        assert_eq!(
            told(true, None),
            "The server replaces records with its own command (SET IFEQ) and deletes them with a script."
        );
        assert_eq!(told(false, None), "The server uses a script for compare-and-set.");
        assert!(told(false, Some("DELIFEQ")).contains("its own command (DELIFEQ)"));
    }
}
