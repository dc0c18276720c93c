//! Tests of the status page of bitcoind-usdt-exporter in a browser.

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::browser::Browser;
use crate::harness::eventually;
use crate::harness::exporter::Exporter;
use crate::harness::fixture::{Fixture, compile, exporter as usdt_exporter};
use crate::harness::node::Node;
use crate::status_page::keep;

fn open(exporter: &Exporter, width: u32, dark: bool) -> Browser {
    let browser = Browser::start(width, 1100, dark);
    browser.open(&format!("http://{}/", exporter.address()));
    eventually("the page shows the node", || {
        (browser.run("return $('state').textContent") == "traced").then_some(())
    });
    browser
}

/// Starts a node that mines, a second node that gets its blocks from the first node, and an exporter that traces the
/// second node.
fn followed() -> ([Node; 2], Exporter) {
    let miner = Node::start(&[]);
    miner.mine(1);
    let node = Node::start(&[&format!("-addnode=127.0.0.1:{}", miner.p2p_port)]);
    eventually("the node follows", || (node.cli(&["getblockcount"]) == "1").then_some(()));
    let exporter = usdt_exporter(node.pid(), &["--node-name", "follower"]);
    ([miner, node], exporter)
}

fn mine(miner: &Node, exporter: &Exporter, number: usize) -> Vec<String> {
    let mined: Vec<_> = (0..number)
        .map(|_| {
            let hash = miner.mine(1).remove(0);
            eventually("the block is followed", || exporter.log().contains(&hash).then_some(()));
            hash
        })
        .collect();
    mined
}

pub fn page_shows_blocks_as_the_log_has_them() {
    let ([miner, _node], exporter) = followed();
    let browser = open(&exporter, 1280, false);
    assert!(browser.run("return $('blocks').innerText").as_str().unwrap().contains("No block was connected"));
    let mined = mine(&miner, &exporter, 3);
    eventually("the last block is shown", || {
        (browser.run("return document.querySelectorAll('details').length") == 3).then_some(())
    });
    let heights = browser.run("return [...document.querySelectorAll('summary b')].map(it => it.innerText)");
    assert_eq!(heights, serde_json::json!(["4", "3", "2"]));
    let log = exporter.log();
    let line = log.lines().find(|line| line.contains(&mined[2])).unwrap();
    let field = |name: &str| -> f64 {
        let (_, rest) = line.split_once(&format!(" {name}=")).unwrap_or_else(|| panic!("{name}: {line}"));
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    let bars = "const bar = [...document.querySelectorAll('details')][0].querySelectorAll('rect');
                return [...bar].map(it => [it.getAttribute('class'), Number(it.getAttribute('x')), Number(it.getAttribute('width'))])";
    // With the setting `each`, each block has its own time scale, and its bars fill the full width.
    browser.run("document.querySelector('[value=each]').click()");
    let drawn = browser.run(bars);
    let (last, whole) = (drawn.as_array().unwrap().last().unwrap(), field("connected_us"));
    assert_eq!(last[0], "check", "{drawn}");
    assert!(
        (last[1].as_f64().unwrap() - 1000.0 * field("complete_us") / whole).abs() < 0.01,
        "{drawn} {line}"
    );
    keep(&browser, "blocks.png");

    // The page divides the time of a block into stages. The first block here has all kinds of stages. The second block
    // was complete (60 µs) before the peer responded to the node's request (70 µs), and the stage `trip` therefore ends
    // when the block is complete.
    let stages = |block: &str| browser.run(&format!("return stages({block}).map(it => it.slice(0, 3))"));
    assert_eq!(
        stages(
            "{announced_by: 'inv', compact_us: 10, asked_us: 20, answered_us: 50, complete_us: 60, connected_us: 80}"
        ),
        serde_json::json!([
            ["wait", 0, 10],
            ["transfer", 10, 20],
            ["trip", 20, 50],
            ["transfer", 50, 60],
            ["check", 60, 80]
        ])
    );
    assert_eq!(
        stages(
            "{announced_by: 'headers', compact_us: 10, asked_us: 20, answered_us: 70, complete_us: 60, connected_us: 80}"
        ),
        serde_json::json!([["wait", 0, 10], ["transfer", 10, 20], ["trip", 20, 60], ["check", 60, 80]])
    );
    assert_eq!(stages("{announced_by: null}"), serde_json::json!([]));

    // Select the second block with the keyboard, and open the details of the block.
    browser.run("document.querySelector('summary').focus()");
    browser.press("\u{e015}\u{e007}"); // arrow down, enter
    let opened = "const open = document.querySelector('details[open]'); return open && open.innerText";
    let shown: Value = browser.run(opened);
    assert!(shown.as_str().unwrap().contains(&mined[1]), "{shown}");
    // The details of the block stay open when the page is refreshed.
    mine(&miner, &exporter, 1);
    eventually("the next block is shown", || {
        (browser.run("return document.querySelectorAll('details').length") == 4).then_some(())
    });
    assert!(browser.run(opened).as_str().unwrap().contains(&mined[1]));
    assert_eq!(browser.run("return $('wrong').innerText"), "None.");
    assert_eq!(browser.run("return $('fibre').hidden"), true);
    keep(&browser, "blocks-open.png");

    assert_eq!(browser.console(), Vec::<String>::new());
    let page = exporter.get("/").1;
    assert!(page.len() < 60_000, "{}", page.len());
    let elsewhere: Vec<_> = page.split("://").skip(1).map(|rest| &rest[..20]).collect();
    assert_eq!(elsewhere, ["www.w3.org/2000/svg\""], "only the name of SVG");
}

pub fn blocks_page_fits_a_phone_in_dark_mode() {
    let ([miner, _node], exporter) = followed();
    mine(&miner, &exporter, 2);
    let browser = open(&exporter, 420, true);
    eventually("the blocks are shown", || {
        (browser.run("return document.querySelectorAll('details').length") == 2).then_some(())
    });
    browser.run("document.querySelector('details').open = true");
    assert_eq!(browser.run("return matchMedia('(prefers-color-scheme: dark)').matches"), true);
    assert_eq!(browser.run("return document.documentElement.scrollWidth <= innerWidth"), true);
    keep(&browser, "blocks-phone.png");
    assert_eq!(browser.console(), Vec::<String>::new());
}

pub fn races_of_fibre_are_shown() {
    let dir = TempDir::new().unwrap();
    let mut fixture = Fixture::start(&compile(dir.path(), &["-DDETAIL"]));
    let exporter = usdt_exporter(fixture.pid(), &[]);
    let browser = open(&exporter, 1280, false);
    // The page must not conclude from the times which mechanism delivered the block first: each time begins with the
    // first data of a mechanism and ends with the connection of the block, and the winner therefore often has the
    // longer time.
    fixture.fire("winner 800001 FIBRE/UDP peer");
    fixture.fire("time 800001 5500000 peer 2000000 other");
    fixture.fire("winner 800002 BIP152/CMPCTBLOCK other");
    fixture.fire("time 800002 -1 n/a 7000000 other");
    eventually("both races are shown", || (browser.run("return $('races').rows.length") == 2).then_some(()));
    let rows = browser.run(
        "return [...$('races').rows].map(row => [...row.cells].map(cell => cell.innerText).filter((_, at) => at !== 1))",
    );
    let expected = serde_json::json!([
        ["800,002", "compact block only", "–", "7", "–"],
        ["800,001", "FIBRE/UDP", "5.5", "2", "3.5"],
    ]);
    assert_eq!(rows, expected);
    assert!(
        browser
            .run("return $('wrong').innerText")
            .as_str()
            .unwrap()
            .contains("stages of blocks are not recorded")
    );
    keep(&browser, "races.png");

    // After the exit of the only process of the fixture's binary, the exporter has no node to trace.
    drop(fixture);
    eventually("the page shows that the node has exited", || {
        (browser.run("return $('state').textContent") == "not traced").then_some(())
    });
    let wrong = browser.run("return $('wrong').innerText");
    // The page first shows that the process has exited, and then that no new process of the binary runs.
    assert!(wrong.as_str().unwrap().contains("fixture"), "{wrong}");
    assert_eq!(browser.run("return $('races').rows.length"), 2);
    assert_eq!(browser.console(), Vec::<String>::new());
}
