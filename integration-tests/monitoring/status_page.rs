//! Tests of the status page of bitcoind-ipc-exporter in a browser.

use std::process::Command;

use serde_json::Value;

use crate::harness::browser::Browser;
use crate::harness::eventually;
use crate::harness::exporter::Exporter;
use crate::harness::node::Node;

/// Writes a screenshot to the folder in SCREENSHOTS, if this variable is set.
pub fn keep(browser: &Browser, name: &str) {
    if let Some(folder) = std::env::var_os("SCREENSHOTS") {
        let file = std::path::Path::new(&folder).join(name);
        let mut base64 = Command::new("base64")
            .arg("-d")
            .stdin(std::process::Stdio::piped())
            .stdout(std::fs::File::create(file).unwrap())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut base64.stdin.take().unwrap(), browser.screenshot().as_bytes())
            .unwrap();
        base64.wait().unwrap();
    }
}

fn open(exporter: &Exporter, width: u32, dark: bool) -> Browser {
    let browser = Browser::start(width, 1400, dark);
    browser.open(&format!("http://{}/", exporter.address()));
    eventually("the page shows the node", || {
        (browser.run("return $('state').textContent") == "up").then_some(())
    });
    browser
}

fn text(browser: &Browser, id: &str) -> String {
    browser.run(&format!("return document.getElementById('{id}').innerText")).as_str().unwrap().to_string()
}

fn bands_say(browser: &Browser) -> String {
    browser.run("return bands.shown.textContent").as_str().unwrap().to_string()
}

pub fn numbers_equal_the_metrics_and_follow_the_node() {
    let mut node = Node::start(&[]);
    let blocks = node.mine(101);
    let (_, size) = node.spend_coinbase_of(&blocks[0], 5_000); // 70 sat/vB
    let exporter = Exporter::start(&node.socket(), &["--poll-interval", "1s"]).ready();
    let browser = open(&exporter, 1280, false);
    let shown = |sample: &str| -> Value {
        browser.run(&format!(
            "return document.querySelector('[data-sample=\"{sample}\"]').dataset.value ?? null"
        ))
    };
    let samples = browser
        .run("return [...document.querySelectorAll('[data-sample]')].map(tile => tile.dataset.sample)");
    let mut compared = 0;
    for sample in samples.as_array().unwrap().iter().map(|sample| sample.as_str().unwrap()) {
        if sample.contains('"') {
            // These samples are fee estimates, which the node does not have on this chain.
            assert_eq!(exporter.value(sample), None);
        } else if sample == "bitcoin_node_uptime_seconds" {
            assert!(shown(sample).as_str().is_some());
        } else {
            eventually(sample, || {
                let value = exporter.value(sample)?;
                (shown(sample).as_str()?.parse() == Ok(value)).then_some(())
            });
            compared += 1;
        }
    }
    assert!(compared >= 6, "{compared}");

    let hash = node.mine(1).remove(0);
    eventually("the new block is shown", || {
        let first =
            browser.run("return [...document.querySelector('#blocks tr').cells].map(cell => cell.innerText)");
        let title = browser.run("return document.querySelector('#blocks tr td[title]').title");
        let described = first[3] == "2" && first[2].as_str()?.ends_with("ago");
        (title == hash.as_str() && first[0] == "102" && shown("bitcoin_chain_height") == "102" && described)
            .then_some(())
    });
    assert!(
        text(&browser, "wrong").contains("None."),
        "the warning of a pre-release build is no problem: {}",
        text(&browser, "wrong")
    );

    // With the first plot focused, the left arrow key shows an earlier point, and the escape key shows the newest
    // point.
    eventually("the plot has points", || {
        (browser.run("return plots[0].points.length > 1") == true).then_some(())
    });
    browser.run("plots[0].figure.focus()");
    browser.press("\u{e012}"); // arrow left
    assert!(browser.run("return plots[0].shown.textContent").as_str().unwrap().contains(" at "));
    browser.press("\u{e00c}"); // escape
    assert!(!browser.run("return plots[0].shown.textContent").as_str().unwrap().contains(" at "));
    // The arrow keys select a fee rate band in the chart of the mempool. The only transaction in the mempool is in the
    // expected band.
    assert_eq!(browser.run("return $('bands').hidden"), false);
    browser.run("bands.figure.focus()");
    browser.press("\u{e011}"); // home
    let in_band = || browser.run("return keys.map(({ key }) => key.textContent)");
    browser.press("\u{e014}"); // arrow right
    let expected = format!("34 to 89 sat/vB: {size} vB");
    assert!(
        in_band().as_array().unwrap().iter().any(|key| *key == expected.as_str()),
        "{expected}: {}",
        in_band()
    );
    assert!(bands_say(&browser).starts_with("for the next block the minimum, in three the minimum"));
    keep(&browser, "up.png");

    node.stop();
    eventually("the page shows that the node is down", || {
        (text(&browser, "state") == "down" && shown("bitcoin_chain_height").is_null()).then_some(())
    });
    assert!(text(&browser, "wrong").contains("node"), "{}", text(&browser, "wrong"));
    keep(&browser, "down.png");
    assert_eq!(browser.console(), Vec::<String>::new());
    let page = exporter.get("/").1;
    assert!(page.len() < 60_000, "{}", page.len());
    let elsewhere: Vec<_> = page.split("://").skip(1).map(|rest| &rest[..20]).collect();
    assert_eq!(elsewhere, ["www.w3.org/2000/svg\""], "only the name of SVG");
}

pub fn status_page_fits_a_phone_in_dark_mode() {
    let node = Node::start(&[]);
    node.mine(3);
    let exporter = Exporter::start(&node.socket(), &[]).ready();
    let browser = open(&exporter, 420, true);
    assert_eq!(browser.run("return matchMedia('(prefers-color-scheme: dark)').matches"), true);
    assert_eq!(browser.run("return document.documentElement.scrollWidth <= innerWidth"), true);
    keep(&browser, "phone.png");
    assert_eq!(browser.console(), Vec::<String>::new());
}

/// Creates the README's picture: the status page of a node that has had a peer, transactions and blocks for some time.
pub fn picture_of_the_page() {
    let first = Node::start(&[]);
    let second = Node::start(&[&format!("-addnode=127.0.0.1:{}", first.p2p_port)]);
    let mut spendable = first.mine(130)[..25].to_vec();
    let exporter = Exporter::start(&first.socket(), &["--poll-interval", "1s"]).ready();
    let browser = Browser::start(1280, 1240, false);
    browser.open(&format!("http://{}/", exporter.address()));
    for round in 0..45 {
        if round % 2 == 0
            && let Some(block) = spendable.pop()
        {
            first.spend_coinbase_of(&block, 5_000 + 200 * round);
        }
        if round % 9 == 8 {
            first.mine(1);
        }
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    eventually("the page shows the last block", || {
        (browser.run("return document.querySelector('#blocks tr').cells[0].innerText") == "135").then_some(())
    });
    assert_eq!(second.cli(&["getblockcount"]), "135");
    keep(&browser, "node.png");
}
