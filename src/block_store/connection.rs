//! A connection to the block store, the PostgreSQL database that collects the rows of many exporters: connects, creates
//! or checks the schema, and stores rows.

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Config, Row};
use tracing::{debug, info};

use super::settings::StoreSettings;
use super::tls::Connector;
use crate::block_log::DatabaseError;
use crate::text;

/// The schema version that this exporter supports: the version of `contrib/postgresql/propagation.sql`.
const VERSION: i32 = 1;
const SCHEMA: &str = include_str!("../../contrib/postgresql/propagation.sql");
/// Timeout of an attempt to connect to the block store and of an SQL statement. Without the timeout, a database that is
/// stopped or overloaded could block the thread that forwards rows forever.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Timeout of the request to the server to cancel an SQL statement that has exceeded its timeout.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);

/// SQL statement that stores rows, which are passed as a JSON array. A stored row of the same block and node is
/// replaced only if the new row has a finer resolution of times, or the same resolution and no later time of
/// connection. The row of a block that a node connected again after a reorganization therefore keeps the times of the
/// first connection.
const STORE: &str = "
    INSERT INTO propagation.blocks AS stored
    SELECT DISTINCT ON (row.chain, row.block_height, row.block_hash, row.node) row.*
    FROM json_array_elements($1::text::json) WITH ORDINALITY AS sent (value, number),
        json_populate_record(NULL::propagation.blocks, sent.value) AS row
    ORDER BY row.chain, row.block_height, row.block_hash, row.node, row.resolution_us, row.connected_at, sent.number DESC
    ON CONFLICT (chain, block_height, block_hash, node) DO UPDATE SET
        source = excluded.source, resolution_us = excluded.resolution_us, announced_at = excluded.announced_at,
        header_at = excluded.header_at, compact_at = excluded.compact_at, fibre_at = excluded.fibre_at,
        complete_at = excluded.complete_at, connected_at = excluded.connected_at, announced_by = excluded.announced_by,
        announced_connection = excluded.announced_connection, announcements = excluded.announcements,
        arrival = excluded.arrival, race_winner = excluded.race_winner, race_udp_ns = excluded.race_udp_ns,
        race_compact_ns = excluded.race_compact_ns, transactions = excluded.transactions, inputs = excluded.inputs,
        requested = excluded.requested, requested_bytes = excluded.requested_bytes, duration_us = excluded.duration_us,
        clock_synchronized = excluded.clock_synchronized, clock_max_error_us = excluded.clock_max_error_us,
        clock_estimated_error_us = excluded.clock_estimated_error_us
    WHERE (excluded.resolution_us, excluded.connected_at) <= (stored.resolution_us, stored.connected_at)";

/// An open connection to the block store.
pub struct StoreConnection {
    client: Client,
    /// TLS settings of the separate connection over which a statement is cancelled.
    tls: Connector,
}

impl StoreConnection {
    /// Connects to the block store to store rows, and creates the schema `propagation` if it does not exist.
    ///
    /// # Errors
    /// The database cannot be reached, rejects the user, or has a schema of another version.
    pub async fn open_to_write(settings: &StoreSettings, application: &str) -> Result<Self> {
        let connection = Self::connect(settings, application).await?;
        if !connection.has_schema().await? {
            connection.create_schema().await.context(
                "the database has no schema `propagation`, and the exporter cannot create it; apply \
                 contrib/postgresql/propagation.sql as the owner of the database",
            )?;
        }
        connection.check_version().await?;
        Ok(connection)
    }

    /// Connects to the block store to query it, and changes nothing in the database.
    ///
    /// # Errors
    /// The database cannot be reached, rejects the user, has no schema `propagation`, or has a schema of another
    /// version.
    pub async fn open_to_read(settings: &StoreSettings, application: &str) -> Result<Self> {
        let connection = Self::connect(settings, application).await?;
        if !connection.has_schema().await? {
            bail!(
                "the database has no schema `propagation`; start an exporter with --block-store, or correct the URL"
            );
        }
        connection.check_version().await?;
        Ok(connection)
    }

    async fn connect(settings: &StoreSettings, application: &str) -> Result<Self> {
        let mut last = None;
        for config in settings.attempts(application).await? {
            match within(connect(config, settings)).await {
                Ok(client) => return Ok(StoreConnection { client, tls: settings.tls.clone() }),
                Err(error) => {
                    let is_final = is_final(&error);
                    last.get_or_insert(error);
                    if is_final {
                        break;
                    }
                }
            }
        }
        Err(last.unwrap_or_else(|| anyhow!("no host")))
    }

    /// Whether the connection is closed.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Runs a query. Each parameter is passed with its PostgreSQL type.
    ///
    /// # Errors
    /// The query fails, or its result does not arrive within the timeout.
    pub async fn query(
        &self,
        sql: &str,
        parameters: &[(&(dyn tokio_postgres::types::ToSql + Sync), Type)],
    ) -> Result<Vec<Row>> {
        // This function uses `query_typed`, which creates no named statements, because some connection poolers do not
        // support named statements.
        self.run(async { self.client.query_typed(sql, parameters).await.map_err(explain) }).await
    }

    /// Waits for the result of a statement, and cancels the statement after the timeout. Without the cancellation the
    /// server would continue to run the statement, for example to wait for a lock, and each new attempt of the exporter
    /// would leave one more open connection on the server.
    async fn run<T>(&self, statement: impl Future<Output = Result<T>>) -> Result<T> {
        match tokio::time::timeout(TIMEOUT, statement).await {
            Ok(result) => result,
            Err(_) => {
                let cancelled = self.client.cancel_token();
                let cancelled = cancelled.cancel_query(self.tls.clone());
                let _ = tokio::time::timeout(CANCEL_TIMEOUT, cancelled).await;
                bail!("no response within {} s", TIMEOUT.as_secs())
            }
        }
    }

    /// Stores rows. `heights` are the heights of the rows' blocks. If the table has no partition for a height, the
    /// exporter creates the partition.
    ///
    /// # Errors
    /// A row is invalid ([`is_invalid_row`]), or the block store cannot be reached, or cannot store any rows now, for
    /// example because its disk is full. In the last two cases, the rows can be sent later.
    pub async fn store(&self, rows: &[String], heights: &[i32]) -> Result<()> {
        let rows = format!("[{}]", rows.join(","));
        let mut stored = self.query(STORE, &[(&rows, Type::TEXT)]).await;
        if stored.as_ref().err().and_then(sql_state) == Some(SqlState::CHECK_VIOLATION) {
            self.ensure_partitions(heights).await?;
            stored = self.query(STORE, &[(&rows, Type::TEXT)]).await;
        }
        stored.map(drop)
    }

    /// Creates the missing partitions of the table for blocks of these heights. Called only after PostgreSQL has
    /// rejected a row because no partition contains its height, since the creation of a partition can lock the table.
    async fn ensure_partitions(&self, heights: &[i32]) -> Result<()> {
        const ENSURE: &str = "SELECT propagation.ensure_partition(height) FROM unnest($1) AS height";
        // The returned error must not contain the database's error code. With the code, `is_invalid_row` could
        // attribute the error to the data of a row, and the row would be dropped.
        let created = self.query(ENSURE, &[(&heights, Type::INT4_ARRAY)]).await;
        created.map(drop).map_err(|error| anyhow!("cannot create a partition: {error:#}"))
    }

    async fn check_version(&self) -> Result<()> {
        let rows = self.query("SELECT max(version)::int4 FROM propagation.version", &[]).await?;
        match rows.first().and_then(|row| row.get::<_, Option<i32>>(0)) {
            Some(VERSION) => Ok(()),
            Some(version) if version > VERSION => bail!(
                "its schema has version {version}, but this exporter supports version {VERSION}; upgrade the exporter"
            ),
            version => bail!("its schema has version {version:?}; expected version {VERSION}"),
        }
    }

    async fn execute(&self, sql: &str) -> Result<()> {
        self.run(async { self.client.batch_execute(sql).await.map_err(explain) }).await
    }

    async fn has_schema(&self) -> Result<bool> {
        let rows = self.query("SELECT to_regclass('propagation.version') IS NOT NULL", &[]).await?;
        Ok(rows.first().is_some_and(|row| row.get(0)))
    }

    /// Creates the schema `propagation`, unless another exporter creates it at the same time.
    async fn create_schema(&self) -> Result<()> {
        // The lock is held until the end of the transaction. If another exporter held the lock before, the check after
        // the lock therefore finds the schema that the other exporter has created.
        let lock = "BEGIN; SELECT pg_advisory_xact_lock(hashtext('propagation'))";
        self.execute(lock).await?;
        let created = match self.has_schema().await {
            Ok(false) => self.execute(SCHEMA).await.map(|()| true),
            has => has.map(|_| false),
        };
        self.execute(if created.is_ok() { "COMMIT" } else { "ROLLBACK" }).await?;
        if created? {
            info!("created the schema of the block store");
        }
        Ok(())
    }
}

async fn connect(config: Config, settings: &StoreSettings) -> Result<Client> {
    let (client, connection) = config.connect(settings.tls.clone()).await.map_err(explain)?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!("block store: {error}");
        }
    });
    Ok(client)
}

async fn within<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(TIMEOUT, work).await {
        Ok(result) => result,
        Err(_) => bail!("no response within {} s", TIMEOUT.as_secs()),
    }
}

/// The error code of the server, if the server responded with an error.
fn sql_state(error: &anyhow::Error) -> Option<SqlState> {
    error.downcast_ref::<DatabaseError<SqlState>>().and_then(|error| error.code.clone())
}

/// Whether an attempt to connect with another TLS mode would fail, too. An error code of the server means that the
/// server has checked the user and the database. The exception is INVALID_AUTHORIZATION_SPECIFICATION, with which a
/// server may reject a user only without TLS (`hostssl` in `pg_hba.conf`).
fn is_final(error: &anyhow::Error) -> bool {
    sql_state(error).is_some_and(|code| code != SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
}

/// Whether an error of [`StoreConnection::store`] is about the data of a row. The other rows of the same batch may be
/// valid. The code of the error has class 22 (data exception) or 23 (integrity constraint violation).
pub fn is_invalid_row(error: &anyhow::Error) -> bool {
    sql_state(error).is_some_and(|code| code.code().starts_with("22") || code.code().starts_with("23"))
}

/// Adds the reason and, if known, the remedy to an error of `tokio_postgres`.
fn explain(error: tokio_postgres::Error) -> anyhow::Error {
    let text = match error.as_db_error() {
        Some(reported) => format!("{}{}", text::message(reported.message()), advice(reported.code())),
        None => {
            // The text of an error of tokio_postgres does not contain the reason, which is in the error's sources.
            let mut reasons = error.to_string();
            let mut source = error.source();
            while let Some(reason) = source {
                if !reasons.contains(&reason.to_string()) {
                    reasons += &format!(": {reason}");
                }
                source = reason.source();
            }
            if reasons.contains("certificate") {
                reasons += "; compare sslrootcert and sslmode in the URL with the server's certificate";
            }
            reasons
        }
    };
    anyhow::Error::new(DatabaseError { text, code: error.code().cloned() })
}

/// The remedy for an error with this PostgreSQL error code; empty if no remedy is known.
fn advice(code: &SqlState) -> &'static str {
    match *code {
        SqlState::INVALID_PASSWORD => {
            "; check the password: --block-store-password-file, the environment variable …_BLOCK_STORE_PASSWORD, or the \
             systemd credential block-store-password"
        }
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION => "; check pg_hba.conf of the server",
        SqlState::INVALID_CATALOG_NAME => "; create the database first, or correct its name in the URL",
        SqlState::INSUFFICIENT_PRIVILEGE => {
            "; grant the rights that contrib/postgresql/propagation.sql lists"
        }
        SqlState::DISK_FULL => "; the disk of the server is full",
        _ => "",
    }
}
