//! No log, `Debug` output or error contains a secret.

#![cfg(all(feature = "testing", feature = "memory", feature = "tracing"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod support;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use support::stand::{Backend, Stand};
use support::visit::{Visit, cookie_of, visit};
use tracing_subscriber::fmt::MakeWriter;
use unsticky::exchange::{Exchange, Finish};
use unsticky::store::{MemoryStore, Store};
use unsticky::testing::{Fault, Verb};
use unsticky::{Audit, Key, Level, Lifetime, Result, Session, SignedIn};

const WORD: Key<String> = Key::new("word");
const VALUE: &str = "SWORDFISH-IN-THE-SESSION";

/// Collects everything that was printed.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Printed {
    /// Returns a subscriber that collects all log output.
    fn subscriber(&self) -> impl tracing::Subscriber + Send + Sync {
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(self.clone())
            .finish()
    }

    fn add(&self, text: impl std::fmt::Debug) {
        writeln!(self.clone(), "{text:?} {text:#?}").unwrap();
    }

    fn add_error(&self, error: &dyn std::error::Error) {
        let mut source = Some(error);
        while let Some(error) = source {
            writeln!(self.clone(), "{error} {error:?} {error:#?}").unwrap();
            source = error.source();
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Printed {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Returns the forms in which a token's secret could be printed.
fn forms(cookie: &str) -> Vec<String> {
    let token = cookie.split_once('=').unwrap().1;
    let base64 = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let bytes = base64.decode(token).unwrap();
    let secret = &bytes[16..];
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    vec![
        // The first 22 characters are the session id, which is public.
        token[22..].to_owned(),
        base64.encode(secret),
        hex.to_uppercase(),
        hex,
        format!("{}, {}, {}", secret[0], secret[1], secret[2]),
    ]
}

#[tokio::test]
async fn logs_errors_and_debug_output_contain_no_secret() {
    let printed = Printed::default();
    // The subscriber is global, because `tracing` caches its events for all threads.
    tracing::subscriber::set_global_default(printed.subscriber()).unwrap();

    let memory = MemoryStore::new();
    let stand = Stand::over(Arc::new(memory.clone()), |builder| {
        printed.add(&builder);
        builder.timeout(Duration::from_millis(40)).audit(Audit::Principal)
    });
    let Stand { store, spy, clock, sessions, .. } = stand;
    let mut secrets = vec![VALUE.to_owned()];
    let note = |visit: Visit<()>, secrets: &mut Vec<String>| {
        printed.add(&visit.output);
        if let Err(error) = &visit.output {
            printed.add_error(error);
        }
        if visit.set_cookie.is_some() && !visit.removes_cookie() {
            secrets.extend(forms(&visit.cookie()));
        }
        visit.cookie()
    };
    let change = async |session: Session| -> Result<()> {
        session.insert(WORD, &VALUE.to_owned())?;
        session.sign_in("alice")?;
        printed.add(&session);
        session.save().await?;
        printed.add((&session, session.id(), SignedIn::try_from(session.clone())));
        session
            .transact(|values| {
                printed_debug(values);
                Ok(())
            })
            .await
    };
    // A form's CSRF token, the value that it encodes, and a token that a request sends for
    // verification.
    let noted = secrets.len();
    let csrf = std::cell::RefCell::new(Vec::new());
    let with_token = async |session: Session| -> Result<()> {
        let token = session.csrf_token().await?;
        csrf.borrow_mut().push(token.to_string());
        csrf.borrow_mut().extend(session.get(Key::<String>::new("unsticky.csrf"))?);
        printed.add((&token, unsticky::Csrf(&token)));
        session.flash(Level::Info, VALUE)?;
        let refused = session.flash(Level::Info, VALUE.repeat(100)).unwrap_err();
        printed.add_error(&refused);
        session.verify_csrf_token(token.as_str())?;
        let forged = token.as_str().to_lowercase();
        csrf.borrow_mut().push(forged.clone());
        session.verify_csrf_token(&forged)
    };
    for fault in [None, Some(Fault::LoseAnswer), Some(Fault::Refused)] {
        if let Some(fault) = fault {
            store.fail_always(Verb::Create, fault);
        }
        note(visit(&sessions, "", with_token).await, &mut secrets);
        store.heal();
    }
    secrets.extend(csrf.into_inner());
    assert!(secrets.len() > noted + 2);
    let old = note(visit(&sessions, "", change).await, &mut secrets);
    let cookie = note(visit(&sessions, &old, change).await, &mut secrets);

    // Replaced secrets, several tokens, an expired session, invalid bytes, and errors of every kind.
    note(visit(&sessions, &old, change).await, &mut secrets);
    let other = note(visit(&sessions, "", change).await, &mut secrets);
    note(visit(&sessions, &format!("{other}; {cookie}"), change).await, &mut secrets);
    let wrong = async |session: Session| session.get(Key::<u32>::new("word")).map(|_| ());
    note(visit(&sessions, &cookie, wrong).await, &mut secrets);
    let large = async |session: Session| session.insert(WORD, &VALUE.repeat(9000));
    note(visit(&sessions, &cookie, large).await, &mut secrets);
    for fault in
        [Fault::Unavailable, Fault::Refused, Fault::LoseAnswer, Fault::Hang, Fault::Garbage]
    {
        for verb in Verb::ALL {
            store.inject(verb, fault);
            note(visit(&sessions, &cookie, change).await, &mut secrets);
            store.heal();
        }
    }
    for command in spy.commands() {
        printed.add(&command);
        printed.add(memory.load(&command.key).await);
    }
    let last = note(visit(&sessions, "", change).await, &mut secrets);
    clock.advance(Duration::from_secs(3600));
    note(visit(&sessions, &last, change).await, &mut secrets);

    let exchange = Exchange::begin(&sessions, [cookie.to_owned()], None);
    printed.add((&exchange, exchange.handle()));
    let session = exchange.handle().session().await.unwrap();
    session.insert(WORD, &VALUE.to_owned()).unwrap();
    let finish = exchange.finish(200);
    printed.add(&finish);
    if let Finish::Pending(reply) = finish {
        let reply = reply.await;
        printed.add(&reply);
        secrets.extend(forms(&cookie_of(&reply).unwrap()));
    }
    printed.add((&sessions, &store, &spy, &memory, Lifetime::default(), WORD));

    let text = printed.text();
    for expected in
        ["wrong_secret", "several_valid_tokens", "expired", "outcome_in_doubt", "SessionId("]
    {
        assert!(text.contains(expected), "{expected} was not printed: the test captured no output");
    }
    assert!(secrets.len() > 20, "{}", secrets.len());
    for secret in secrets {
        if let Some(at) = text.find(&secret) {
            panic!("a secret was printed: {}", &text[at.saturating_sub(200)..at + secret.len()]);
        }
    }
}

fn printed_debug(values: &unsticky::Transaction<'_>) {
    tracing::info!("{values:?}");
}

#[tokio::test]
async fn store_holds_no_usable_token() {
    let stand = Backend::memory().stand();
    let cookie = stand.sign_in("").await;
    let key = stand.key(&cookie).await;
    let stored = stand.stored(&key).await;
    let base64 = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let secret = &base64.decode(cookie.split_once('=').unwrap().1).unwrap()[16..];
    assert!(!stored.windows(16).any(|window| window == secret));
    // The session id and the stored digest together do not form a valid cookie.
    let id = key.as_str().rsplit(':').next().unwrap();
    let digest = &stored[12..44];
    for half in [&digest[..16], &digest[16..]] {
        let forged = [&base64.decode(id).unwrap(), half].concat();
        let forged = format!("__Host-id={}", base64.encode(forged));
        assert_eq!(stand.who(&forged).await, None);
    }
}

/// Servers and proxies that echo the words of a command in their answers, in every plausible form.
#[cfg(feature = "redis")]
mod repeating_server {
    use std::time::Duration;

    use base64::Engine as _;
    use bytes::Bytes;
    use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::{TcpListener, TcpStream};
    use unsticky::Sessions;
    use unsticky::store::{RedisStore, Store, Stored, Version};
    use unsticky::testing::random_key;

    use super::support::visit::visit;
    use super::{Printed, VALUE, WORD};

    const PASSWORD: &str = "hunter2-sesame";
    const USER: &str = "somebody9";

    /// Encodes one word of a command.
    type Form = fn(&[u8]) -> Vec<u8>;

    const FORMS: [Form; 5] = [
        |word| word.to_vec(),
        |word| word.escape_ascii().collect(),
        |word| word.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect(),
        |word| base64::engine::general_purpose::STANDARD.encode(word).into_bytes(),
        |word| word.to_ascii_uppercase(),
    ];

    /// Answers in which `WORDS` stands for all words of the command, and `LAST` for a word that is
    /// secret.
    const ANSWERS: [&str; 18] = [
        "-ERR unknown command 'WORDS', with args beginning with: WORDS\r\n",
        "-ERR unknown command WORDS\r\n",
        "-ERR wrong number of arguments for 'LAST' command\r\n",
        "-ERR cannot forward WORDS\r\n",
        "-ERR Error running script (call to f_5f): @user_script:2: -LAST WORDS\r\n",
        "-ERR Error running script (call to f_5f): @user_script:2: -OOM WORDS\r\n",
        "-ERR ACL failure in script: User LAST has no permissions script: LAST on @user_script:1.\r\n",
        "-NOPERM User LAST has no permissions to run the 'LAST' command\r\n",
        "-READONLY WORDS\r\n",
        "-MOVED LAST LAST\r\n",
        "-WRONGPASS LAST\r\n",
        "-NOAUTH Authentication required. LAST\r\n",
        "-LAST WORDS\r\n",
        "-LASTWORDS\r\n",
        "+WORDS\r\n",
        "*2\r\n+LAST\r\n-ERR LAST\r\n",
        "LAST\r\n",
        ":LAST\r\n",
    ];

    /// Starts a server that may accept the greeting, and then sends this answer, with the words in this
    /// form.
    async fn server(answer: &'static str, form: Form, takes_greeting: bool) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    while let Some(words) = command(&mut stream).await {
                        let greets = ["AUTH", "SELECT", "CLIENT", "HELLO"]
                            .iter()
                            .any(|name| name.as_bytes() == words[0]);
                        let answer = match takes_greeting && greets {
                            true => b"+OK\r\n".to_vec(),
                            false => repeated(answer, &words, form),
                        };
                        if stream.write_all(&answer).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        port
    }

    fn repeated(answer: &str, words: &[Vec<u8>], form: Form) -> Vec<u8> {
        let words: Vec<_> = words.iter().map(|word| form(word)).collect();
        let longest = words.iter().max_by_key(|word| word.len()).unwrap();
        let mut bytes = Vec::new();
        for part in answer.split_inclusive("LAST") {
            let (part, last) = match part.strip_suffix("LAST") {
                Some(part) => (part, &longest[..]),
                None => (part, &b""[..]),
            };
            for part in part.split_inclusive("WORDS") {
                match part.strip_suffix("WORDS") {
                    Some(part) => {
                        bytes.extend([part.as_bytes(), &words.join(&b"' '"[..])].concat())
                    }
                    None => bytes.extend(part.as_bytes()),
                }
            }
            bytes.extend(last);
        }
        bytes
    }

    async fn command(stream: &mut BufReader<TcpStream>) -> Option<Vec<Vec<u8>>> {
        async fn number(stream: &mut BufReader<TcpStream>) -> Option<usize> {
            let mut line = String::new();
            stream.read_line(&mut line).await.ok()?;
            line.get(1..)?.trim_end().parse().ok()
        }
        let mut words = Vec::new();
        for _ in 0..number(stream).await? {
            let mut word = vec![0; number(stream).await? + 2];
            stream.read_exact(&mut word).await.ok()?;
            word.truncate(word.len() - 2);
            words.push(word);
        }
        Some(words)
    }

    #[tokio::test]
    async fn record_and_password_echoed_by_server_are_printed_nowhere() {
        let printed = Printed::default();
        let _default = tracing::subscriber::set_default(printed.subscriber());

        let record = Bytes::from([&b"\xff\xfe\x01234567"[..], VALUE.as_bytes()].concat());
        let mut secrets = Vec::new();
        for secret in [VALUE.as_bytes(), PASSWORD.as_bytes(), USER.as_bytes(), &record] {
            for form in FORMS {
                // A part of the secret that is long enough to recognise.
                let form = String::from_utf8_lossy(&form(secret)).into_owned();
                secrets.extend([
                    form.to_lowercase(),
                    form.chars().take(8).collect::<String>().to_lowercase(),
                ]);
            }
        }
        for (answer, takes_greeting, protocol) in ANSWERS.iter().flat_map(|answer| {
            [(answer, true, 2), (answer, false, 2), (answer, true, 3), (answer, false, 3)]
        }) {
            for form in FORMS {
                let port = server(answer, form, takes_greeting).await;
                let url =
                    format!("redis://{USER}:{PASSWORD}@127.0.0.1:{port}/3?protocol={protocol}");
                let patience = Duration::from_millis(60);
                let store = RedisStore::builder(&url)
                    .unwrap()
                    .connect_timeout(patience)
                    .response_timeout(patience)
                    .build()
                    .unwrap();
                let (key, hour) = (random_key(), Duration::from_secs(3600));
                let expected = Stored::new(record.clone(), Version::new(7));
                for error in [
                    store.load(&key).await.err(),
                    store.create(&key, record.clone(), hour).await.err(),
                    store.replace(&key, record.clone(), hour, &expected).await.err(),
                    store.delete(&key, Some(&expected)).await.err(),
                ] {
                    let error = error.unwrap_or_else(|| panic!("{answer:?} is no error"));
                    printed.add_error(&error);
                }
                let sessions = Sessions::builder(store).build().unwrap();
                let change =
                    async |session: unsticky::Session| session.insert(WORD, &VALUE.to_owned());
                printed.add(visit(&sessions, "", change).await);
            }
        }
        let text = printed.text().to_lowercase();
        for expected in
            ["store_failed", "answered evalsha with oom", "answered auth with err unknown"]
        {
            assert!(
                text.contains(expected),
                "{expected} was not printed: the test captured no output"
            );
        }
        for secret in secrets {
            if let Some(at) = text.find(&secret) {
                panic!(
                    "{secret} was printed: {}",
                    &text[at.saturating_sub(200)..at + secret.len()]
                );
            }
        }
    }
}
