# Tests an exporter whose endpoint has TLS and requires a password, with curl and with a real Prometheus server, also after a
# renewal of the certificate.
import json

FOLDER = "/run/tls"
# The hash is that of the password "secret", from `htpasswd -nbB -C 5 prometheus secret`.
WEB_CONFIG = """
tls_server_config: {cert_file: cert.pem, key_file: key.pem}
basic_auth_users: {prometheus: "$2b$05$9ueskDypWlus7dR5VzuMru8M0BOQoP6Uq/QCU7ol7iGRT/ndwMSjm"}
"""
PROMETHEUS = """
global: {scrape_interval: 1s}
scrape_configs:
  - job_name: bitcoind
    scheme: https
    tls_config: {ca_file: FOLDER/ca.pem, server_name: localhost}
    basic_auth: {username: prometheus, password: secret}
    static_configs: [{targets: ["127.0.0.1:9333"]}]
"""


def certificate(serial):
    """Creates a new certificate for localhost with this serial number, signed by the test's certificate authority."""
    machine.succeed(
        f"cd {FOLDER} && openssl req -newkey rsa:2048 -nodes -keyout new.key -subj /CN=localhost -out new.csr 2>&1",
        f"cd {FOLDER} && printf 'subjectAltName=DNS:localhost' > san && openssl x509 -req -in new.csr -CA ca.pem "
        f"-CAkey ca.key -set_serial {serial} -days 30 -extfile san -out new.pem 2>&1",
        f"cd {FOLDER} && mv new.key key.pem && mv new.pem cert.pem && chmod 644 key.pem",
    )


def put(name, text):
    machine.succeed(f"cat > {FOLDER}/{name} << 'END'\n{text}\nEND")


def shown_serial():
    return machine.succeed("openssl s_client -connect 127.0.0.1:9333 -servername localhost < /dev/null 2>/dev/null | "
                           "openssl x509 -noout -serial").strip()


CURL = f"curl -s --max-time 20 --cacert {FOLDER}/ca.pem --resolve localhost:9333:127.0.0.1"
METRICS = "https://localhost:9333/metrics"

start_all()
machine.succeed(
    f"mkdir -p {FOLDER}",
    f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {FOLDER}/ca.key -subj /CN=authority -days 30 -out {FOLDER}/ca.pem 2>&1",
)
certificate(11)
put("web.yml", WEB_CONFIG)
put("prometheus.yml", PROMETHEUS.replace("FOLDER", FOLDER))
machine.succeed("systemctl start bitcoind.service")
machine.wait_until_succeeds("test -S /run/bitcoind/node.sock")
# This exporter listens on port 9333, because the socket unit of the service listens on port 9332.
machine.succeed("systemd-run --unit=exporter --uid=bitcoin bitcoind-ipc-exporter --metrics-addr 127.0.0.1:9333 "
                f"--web.config.file {FOLDER}/web.yml /run/bitcoind/node.sock")

with subtest("only with the password, only over TLS"):
    machine.wait_until_succeeds(f"{CURL} -f -u prometheus:secret {METRICS} | grep -x 'bitcoin_up 1'")
    assert machine.succeed(f"{CURL} -o /dev/null -w '%{{http_code}}' {METRICS}") == "401"
    assert machine.succeed(f"{CURL} -o /dev/null -w '%{{http_code}}' -u prometheus:wrong {METRICS}") == "401"
    machine.fail("curl -sf --max-time 20 http://127.0.0.1:9333/metrics")

with subtest("a real Prometheus scrapes it"):
    machine.succeed("systemd-run --unit=scraper --property=StateDirectory=scraper prometheus "
                    f"--config.file={FOLDER}/prometheus.yml --storage.tsdb.path=/var/lib/scraper "
                    "--web.listen-address=127.0.0.1:9091")

    def scraped():
        answer = machine.wait_until_succeeds("curl -sf -G http://127.0.0.1:9091/api/v1/query --data-urlencode query=bitcoin_up")
        return [sample["value"][1] for sample in json.loads(answer)["data"]["result"]]

    machine.wait_until_succeeds("curl -sf -G http://127.0.0.1:9091/api/v1/query --data-urlencode query=bitcoin_up | grep '\"1\"'")
    assert scraped() == ["1"]

with subtest("a renewed certificate is used without a restart"):
    assert shown_serial() == "serial=0B", shown_serial()
    certificate(12)
    machine.wait_until_succeeds("openssl s_client -connect 127.0.0.1:9333 -servername localhost < /dev/null 2>/dev/null | "
                                "openssl x509 -noout -serial | grep -x serial=0C")
    machine.succeed(f"{CURL} -f -u prometheus:secret -o /dev/null {METRICS}")
