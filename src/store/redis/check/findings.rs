//! What the answers of a server mean. Pure: nothing is asked here.

use std::collections::HashMap;
use std::time::Duration;

use crate::check::Finding;
use crate::store::redis::check::info::{Follower, Info};
use crate::store::redis::check::role::Role;

/// The settings of a server by their names, as far as it tells them.
pub(super) type Config = HashMap<&'static str, String>;

/// The settings that findings depend on.
pub(super) const SETTINGS: [&str; 4] = [SAVE, STOP_WRITES, MIN_REPLICAS, MAX_LAG];

const SAVE: &str = "save";
const STOP_WRITES: &str = "stop-writes-on-bgsave-error";
const MIN_REPLICAS: &str = "min-replicas-to-write";
const MAX_LAG: &str = "min-replicas-max-lag";

/// For how many seconds a replica may have confirmed nothing; they do so every second.
const LAG: u64 = 3;

/// From so many per cent on, little is left.
const NEARLY_ALL: u64 = 80;

/// How much clocks may differ without a warning.
const DIFFERENCE: time::Duration = time::Duration::SECOND;

/// All that the server's answers to `INFO` and `CONFIG GET` tell.
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

/// Which server it is.
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
        let sentence = format!("It is {name} {version}, and sessions need Redis 6.2 or newer.");
        Finding::error(CODE, sentence, "Upgrade the server.")
    } else {
        Finding::fine(CODE, format!("It is {name} {version}."))
    })
}

/// Whether the server is what it is to be.
pub(super) fn role(info: &Info, expected: Role) -> Option<Finding> {
    const CODE: &str = "role";
    let mode = info.text("redis_mode").or_else(|| info.text("server_mode"))?;
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
            ("a Sentinel", "Name the Sentinels in the address, and none of the servers they watch.")
        }
        Role::Sentinel => return Some(Finding::fine(CODE, format!("It is {is}."))),
        _ if is_sentinel => (
            "a server that keeps data",
            "The address of what it watches begins with redis+sentinel:// or rediss+sentinel://.",
        ),
        Role::Node | Role::SpareNode if !is_node => {
            ("a node of a cluster", "The address of one server begins with redis:// or rediss://.")
        }
        Role::Master | Role::Replica if is_node => (
            "a server of its own",
            "The address of a cluster begins with redis+cluster:// or rediss+cluster://.",
        ),
        Role::Master if is_replica => (
            "a master",
            "A replica takes no writes. Let the address lead to its master, or name Sentinels \
             (redis+sentinel://), which know the master.",
        ),
        Role::Replica if !is_replica => {
            let sentence = format!("It is {is}, where a replica is expected.");
            let remedy = "See whether a failover is under way, or whether it follows nobody.";
            return Some(Finding::warning(CODE, sentence, remedy));
        }
        Role::Master | Role::Replica | Role::Node | Role::SpareNode => {
            return Some(Finding::fine(CODE, format!("It is {is}.")));
        }
    };
    Some(Finding::error(CODE, format!("It is {is}, where {wanted} is expected."), remedy))
}

/// A server that has just been started.
pub(super) fn loading(info: &Info) -> Option<Finding> {
    let is_loading = info.is("loading", "1") || info.is("async_loading", "1");
    is_loading.then(|| {
        let sentence = "It is still loading its data (loading is 1), and takes no commands.";
        Finding::error("loading", sentence, "Wait until it has ended.")
    })
}

/// Whether it removes keys when its memory is full.
fn eviction(info: &Info) -> Option<Finding> {
    const CODE: &str = "eviction";
    let policy = info.text("maxmemory_policy").filter(|policy| is_word(policy))?;
    if policy == "noeviction" {
        return Some(Finding::fine(CODE, "It evicts no keys (maxmemory-policy is noeviction)."));
    }
    // Every key of ours has a time to live, so the policies for such keys are no better.
    let remedy = "Set maxmemory-policy to noeviction.";
    Some(if info.number("maxmemory")? == 0 {
        let sentence = format!(
            "maxmemory-policy is {policy}, which removes sessions early once maxmemory is set; it is 0."
        );
        Finding::note(CODE, sentence, remedy)
    } else {
        let sentence = format!(
            "maxmemory-policy is {policy}: when its memory is full, it removes sessions before \
             their time."
        );
        Finding::warning(CODE, sentence, remedy)
    })
}

/// Whether it has done so.
fn evicted(info: &Info) -> Option<Finding> {
    let count = info.number("evicted_keys").filter(|count| *count > 0)?;
    Some(Finding::warning(
        "evicted",
        format!(
            "It has removed {count} keys since its start to make room (evicted_keys), and sessions \
             may be among them."
        ),
        "Set maxmemory-policy to noeviction and give it more memory; CONFIG RESETSTAT sets the \
         number back.",
    ))
}

fn memory(info: &Info) -> Option<Finding> {
    const CODE: &str = "memory";
    let (used, limit) = (info.number("used_memory")?, info.number("maxmemory")?);
    if limit == 0 {
        let used = size(used);
        let sentence =
            format!("It uses {used}, and maxmemory is 0: its host's memory is the limit.");
        let remedy = "Set maxmemory to what the host can give, so that a full server refuses writes \
                      and is not ended by the host.";
        return Some(Finding::note(CODE, sentence, remedy));
    }
    // As the server counts before it refuses a write.
    let used = used.saturating_sub(info.number("mem_not_counted_for_evict").unwrap_or(0));
    let share = share(used, limit);
    let sentence = format!("It uses {share} % of its memory (maxmemory is {})", size(limit));
    let remedy = "Raise maxmemory, or see what fills it.";
    Some(match share {
        100.. if info.is("maxmemory_policy", "noeviction") && !info.is("role", "slave") => {
            Finding::error(CODE, format!("{sentence}, so it refuses writes."), remedy)
        }
        NEARLY_ALL.. => Finding::warning(CODE, format!("{sentence}."), remedy),
        _ => Finding::fine(CODE, format!("{sentence}.")),
    })
}

fn connections(info: &Info) -> Option<Finding> {
    const CODE: &str = "connections";
    let (count, limit) = (info.number("connected_clients")?, info.number("maxclients")?);
    let sentence = format!("It has {count} of at most {limit} connections (maxclients)");
    Some(if share(count, limit) > NEARLY_ALL {
        Finding::warning(
            CODE,
            format!("{sentence}; beyond that, it refuses new ones."),
            "Raise maxclients, or see who opens so many.",
        )
    } else {
        Finding::fine(CODE, format!("{sentence}."))
    })
}

/// What is left after the server was restarted, and whether its disk works.
fn persistence(info: &Info, config: &Config) -> Option<Finding> {
    const CODE: &str = "persistence";
    const REMEDY: &str = "See the server's log, and whether its disk is full or its directory is \
                          writable.";
    let has_log = info.text("aof_enabled")? == "1";
    let saves = config.get(SAVE).map(|save| !save.is_empty());
    if has_log && info.is("aof_last_write_status", "err") {
        let sentence = "It cannot write its append-only file (aof_last_write_status is err), so it \
                        takes no writes.";
        return Some(Finding::error(CODE, sentence, REMEDY));
    }
    if info.is("rdb_last_bgsave_status", "err") {
        let failed = "Its last snapshot failed (rdb_last_bgsave_status is err)";
        let stops = config.get(STOP_WRITES).map(|stops| stops == "yes");
        return Some(match (saves, stops) {
            (Some(true), Some(true)) => Finding::error(
                CODE,
                format!("{failed}, so it takes no writes ({STOP_WRITES} is yes)."),
                REMEDY,
            ),
            (Some(false), _) | (_, Some(false)) => {
                let sentence = format!("{failed}, so a restart brings back older data.");
                Finding::warning(CODE, sentence, REMEDY)
            }
            _ => Finding::warning(
                CODE,
                format!("{failed}, so it may take no writes ({STOP_WRITES} is not known)."),
                REMEDY,
            ),
        });
    }
    let remedy = "Set appendonly to yes if sessions must survive a restart.";
    Some(match (has_log, saves) {
        (true, _) => Finding::fine(CODE, "It keeps an append-only file (appendonly is yes)."),
        (_, Some(true)) => {
            let sentence = "It makes snapshots only: a restart takes back the changes since the last \
                            one, sign-outs as well.";
            Finding::note(CODE, sentence, remedy)
        }
        (_, Some(false)) => {
            let sentence = "It keeps nothing on its disk: a restart ends all sessions.";
            Finding::note(CODE, sentence, remedy)
        }
        (_, None) => {
            let sentence =
                "It keeps no append-only file, and whether it makes snapshots is not known.";
            Finding::note(CODE, sentence, remedy)
        }
    })
}

fn replicas(info: &Info, config: &Config) -> Option<Finding> {
    const CODE: &str = "replicas";
    if info.is("role", "slave") {
        let is_up = info.text("master_link_status")? == "up";
        return Some(if is_up {
            Finding::fine(CODE, "It is connected to its master.")
        } else {
            let sentence = "It has lost its master (master_link_status is down).";
            Finding::warning(CODE, sentence, "See whether the master can be reached from there.")
        });
    }
    let count = info.number("connected_slaves")?;
    let followers = info.followers();
    if let Some(finding) = too_few(info, config, &followers) {
        return Some(finding);
    }
    if count == 0 {
        let sentence = "It has no replica: while it is down, there are no sessions.";
        let remedy = "Run a replica with Sentinel or in a cluster if sessions must survive that.";
        return Some(Finding::note(CODE, sentence, remedy));
    }
    let offset = info.number("master_repl_offset").unwrap_or(0);
    let behind = followers.iter().map(|follower| offset.saturating_sub(follower.offset)).max();
    let lag = followers.iter().filter_map(|follower| follower.lag).max().unwrap_or(0);
    let are_well = followers.iter().all(|follower| follower.is_within(LAG));
    let offline = followers.iter().filter(|follower| !follower.is_online).count();
    let behind = size(behind.unwrap_or(0));
    let sentence = format!(
        "Connected replicas: {count}, not online: {offline}; the slowest is {behind} behind, and \
         confirmed something {lag} s ago."
    );
    Some(if are_well {
        Finding::fine(CODE, sentence)
    } else {
        let remedy = "A failover loses what the replica does not have: see whether it is overloaded, \
                      stopped or cut off.";
        Finding::warning(CODE, sentence, remedy)
    })
}

/// Whether a master refuses writes because too few replicas follow.
fn too_few(info: &Info, config: &Config, followers: &[Follower]) -> Option<Finding> {
    let number = |name| config.get(name).and_then(|value| value.parse::<u64>().ok());
    let (wanted, max_lag) = (number(MIN_REPLICAS)?, number(MAX_LAG)?);
    if wanted == 0 || max_lag == 0 {
        return None;
    }
    let good = info.number("min_slaves_good_slaves");
    let counted = || followers.iter().filter(|follower| follower.is_within(max_lag)).count();
    let good = good.unwrap_or_else(|| u64::try_from(counted()).unwrap_or(u64::MAX));
    (good < wanted).then(|| {
        Finding::error(
            "replicas",
            format!(
                "{good} replicas follow within {max_lag} s ({MAX_LAG}), and {MIN_REPLICAS} is \
                 {wanted}, so it refuses writes."
            ),
            "Have enough replicas follow, or lower min-replicas-to-write.",
        )
    })
}

impl Follower {
    fn is_within(&self, seconds: u64) -> bool {
        self.is_online && self.lag.is_some_and(|lag| lag <= seconds)
    }
}

/// By how much this process's clock is ahead of the server's, as far as a round trip lets one tell.
pub(super) fn clock(ahead: time::Duration, round_trip: Duration) -> Finding {
    const CODE: &str = "clock";
    let uncertain = time::Duration::try_from(round_trip / 2).unwrap_or(time::Duration::MAX);
    let (direction, when) = match ahead.is_negative() {
        true => ("behind", "late"),
        false => ("ahead of", "early"),
    };
    let amount = span(ahead.unsigned_abs());
    let sentence = format!("This process's clock is {amount} {direction} the server's.");
    if ahead.abs() <= DIFFERENCE.saturating_add(uncertain) {
        return Finding::fine(CODE, sentence);
    }
    let remedy = format!(
        "Have both set by NTP: if this process's clock is the wrong one, it ends sessions {amount} too \
         {when}."
    );
    Finding::warning(CODE, sentence, remedy)
}

/// How it compares and sets: whether by itself, and by which command it compares and deletes.
pub(super) fn compare_and_set(sets: bool, deletes: Option<&str>) -> Finding {
    let sentence = match (sets, deletes) {
        (true, Some(delete)) => format!("It compares by itself (SET IFEQ and {delete})."),
        (true, None) => "It replaces by itself (SET IFEQ), and a script deletes.".to_owned(),
        (false, Some(delete)) => format!("A script replaces, and it deletes by itself ({delete})."),
        (false, None) => "A script compares and sets.".to_owned(),
    };
    Finding::fine("compare_and_set", sentence)
}

fn is_word(text: &str) -> bool {
    text.len() <= 40 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// In per cent, rounded down.
fn share(part: u64, whole: u64) -> u64 {
    part.saturating_mul(100) / whole.max(1)
}

/// So many bytes for people.
fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.iter().find(|unit| bytes >= unit.0) {
        Some((unit, name)) => format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes} bytes"),
    }
}

/// So long for people.
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
        assert!(finding.sentence().contains(words), "{finding}");
    }

    #[test]
    fn version_is_that_of_the_program() {
        for (info, level, sentence) in [
            ("redis_version:6.2.0", Level::Fine, "It is Redis 6.2.0."),
            ("redis_version:8.4", Level::Fine, "It is Redis 8.4."),
            ("redis_version:7.2.4\nvalkey_version:9.0.1", Level::Fine, "It is Valkey 9.0.1."),
            ("redis_version:6.0.16", Level::Error, "It is Redis 6.0.16, and sessions need"),
            ("redis_version:5.0", Level::Error, "It is Redis 5.0, and"),
        ] {
            assert(version(&Info::parse(info)), level, sentence);
        }
        for strange in ["", "redis_version:", "redis_version:7.0 \u{1b}[2J", "redis_version:new"] {
            assert_eq!(version(&Info::parse(strange)), None, "{strange:?}");
        }
    }

    #[test]
    fn server_is_compared_with_what_is_expected() {
        let master = "redis_mode:standalone\nrole:master";
        // As Valkey has it.
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
    fn disk_that_refuses_writes_is_an_error() {
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
            ("state=wait_bgsave,offset=0,lag=0", Level::Warning, "not online: 1;"),
        ] {
            let info = Info::parse(&format!("{master}slave1:{other}\n"));
            assert(replicas(&info, &Config::new()), level, words);
        }
        let lost = Info::parse("role:slave\nmaster_link_status:down");
        assert(replicas(&lost, &Config::new()), Level::Warning, "lost its master");
    }

    #[test]
    fn replica_that_is_full_takes_the_writes_of_its_master() {
        let full = "used_memory:20\nmaxmemory:10\nmaxmemory_policy:noeviction\n";
        for (more, level) in [
            ("role:master", Level::Error),
            ("role:slave", Level::Warning),
            // Buffers do not count.
            ("role:master\nmem_not_counted_for_evict:13", Level::Fine),
        ] {
            assert(memory(&Info::parse(&format!("{full}{more}"))), level, "% of its memory");
        }
    }

    #[test]
    fn clock_is_judged_within_what_can_be_told() {
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
    fn comparison_is_told_for_each_kind_of_server() {
        let told = |sets, deletes| compare_and_set(sets, deletes).sentence().to_owned();
        assert_eq!(told(true, Some("DELEX")), "It compares by itself (SET IFEQ and DELEX).");
        assert_eq!(told(true, None), "It replaces by itself (SET IFEQ), and a script deletes.");
        assert_eq!(told(false, None), "A script compares and sets.");
        assert!(told(false, Some("DELIFEQ")).contains("by itself (DELIFEQ)"));
    }
}
