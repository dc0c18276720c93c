//! Runs a real PostgreSQL server with a new database cluster in a temporary directory.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tempfile::TempDir;

use super::eventually;
use super::node::free_port;

/// ID of the user and group nobody. A test that runs as root starts PostgreSQL as nobody, because PostgreSQL does not
/// run as root.
const NOBODY: u32 = 65534;
/// Password of the database user `exporter`.
pub const PASSWORD: &str = "correct horse";

/// Directory with PostgreSQL's programs: the value of POSTGRES_BIN, or the directory of Debian's newest PostgreSQL
/// package. `None` if neither exists.
pub fn programs() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("POSTGRES_BIN") {
        return Some(folder.into());
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let folders =
        versions.map(|version| version.path().join("bin")).filter(|bin| bin.join("initdb").exists());
    folders.max()
}

/// A PostgreSQL server on a port of 127.0.0.1, with the database `fleet` that the user `exporter` owns. The server is
/// stopped when this value is dropped.
pub struct Postgres {
    dir: TempDir,
    pub port: u16,
    server: Option<Child>,
}

impl Postgres {
    /// Creates a new database cluster with these arguments of initdb, and starts no server.
    pub fn initialize(arguments: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        if geteuid().is_root() {
            chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let postgres = Postgres { dir, port: free_port(), server: None };
        let mut initdb = postgres.command("initdb");
        initdb.args(["--username=postgres", "--no-sync"]).args(arguments).arg("-D").arg(postgres.data());
        let made = initdb.output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        postgres
    }

    /// Creates the cluster, the user and the database, and starts the server.
    pub fn start() -> Self {
        let mut postgres = Postgres::initialize(&["--auth=trust"]);
        postgres.write("pg_hba.conf", "local all postgres trust\nhost all all 127.0.0.1/32 scram-sha-256\n");
        postgres.start_again();
        postgres.sql("postgres", &format!("CREATE ROLE exporter LOGIN PASSWORD '{PASSWORD}'"));
        postgres.sql("postgres", "CREATE DATABASE fleet OWNER exporter");
        postgres
    }

    /// A command that runs this program of PostgreSQL, as the user nobody if the test runs as root.
    fn command(&self, program: &str) -> Command {
        let programs = programs().expect("PostgreSQL (Debian: integration-tests/debian-packages postgresql)");
        let mut command = Command::new(programs.join(program));
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        if geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    /// Path of the cluster's data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Writes a file into the cluster's data directory, and returns its path. The server reads the file when it is
    /// started again.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.data().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        if geteuid().is_root() {
            chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        path
    }

    /// Appends settings to `postgresql.conf`. The settings apply when the server is started again.
    pub fn configure(&self, settings: &str) {
        let before = std::fs::read_to_string(self.data().join("postgresql.conf")).unwrap();
        self.write("postgresql.conf", &format!("{before}\n{settings}\n"));
    }

    /// Starts the server with the existing cluster, and waits until it responds.
    pub fn start_again(&mut self) {
        let log = std::fs::File::options().append(true).create(true).open(self.dir.path().join("log"));
        let mut server = self.command("postgres");
        server.arg("-D").arg(self.data()).args(["-c", "listen_addresses=127.0.0.1", "-c"]);
        server.arg(format!("port={}", self.port)).arg("-c");
        server.arg(format!("unix_socket_directories={}", self.dir.path().display()));
        server.stdout(Stdio::null()).stderr(log.unwrap());
        self.server = Some(server.spawn().unwrap());
        eventually("PostgreSQL answers", || self.try_sql("postgres", "SELECT 1").ok());
    }

    /// Stops the server with SIGINT, which closes all connections, and waits until the server exits.
    pub fn stop(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        kill(Pid::from_raw(server.id() as i32), Signal::SIGINT).expect("the server runs");
        server.wait().unwrap();
    }

    /// URL of the database `fleet` for the user `exporter`, without the password. `options` are options of libpq, for
    /// example `sslmode=disable`.
    pub fn url(&self, options: &str) -> String {
        format!("postgres://exporter@127.0.0.1:{}/fleet?{options}", self.port)
    }

    /// Writes [`PASSWORD`] to a file, and returns the path of the file.
    pub fn password_file(&self) -> PathBuf {
        let path = self.dir.path().join("password");
        std::fs::write(&path, format!("{PASSWORD}\n")).unwrap();
        path
    }

    /// Runs SQL as the superuser. Returns psql's output, or its error message.
    pub fn try_sql(&self, database: &str, sql: &str) -> Result<String, String> {
        let mut psql = self.command("psql");
        psql.args(["-h"]).arg(self.dir.path()).args(["-p", &self.port.to_string(), "-U", "postgres"]);
        psql.args(["-v", "ON_ERROR_STOP=1", "-qAtX", "-F", "\t", "-d", database, "-c", sql]);
        let output = psql.env("PGTZ", "UTC").output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Runs SQL as the superuser. Returns a line for each row, with tabs between the columns.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        self.try_sql(database, sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Runs SQL as the superuser in the database `fleet`. Returns the columns of each row.
    pub fn rows(&self, sql: &str) -> Vec<Vec<String>> {
        self.sql("fleet", sql).lines().map(|line| line.split('\t').map(String::from).collect()).collect()
    }

    /// Like [`Self::rows`], but returns `None` if the SQL fails, for example because a table does not exist yet.
    pub fn try_rows(&self, sql: &str) -> Option<Vec<Vec<String>>> {
        let rows = self.try_sql("fleet", sql).ok()?;
        Some(rows.lines().map(|line| line.split('\t').map(String::from).collect()).collect())
    }

    /// The temporary directory with the data directory, the log and the socket.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "PostgreSQL's log:\n{}",
                std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
            );
        }
        self.stop();
    }
}
