#!/bin/sh
# Writes .env for docker-compose.yaml, beside it: random secrets, and the connections to the sample database, to be replaced
# by your own. What is there already stays as it is, so that it can be run again after an update.
set -eu
umask 077
file="$(dirname "$0")/../.env"
touch "$file"
[ -z "$(tail -c 1 "$file")" ] || echo >> "$file"   # its last line may have no end

secret() { od -An -v -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }

add() {  # a variable and its value
  grep -q "^$1=" "$file" || echo "$1=$2" >> "$file"
}

connection() {  # a login of the sample database
  echo "'{\"conn_type\": \"postgres\", \"host\": \"sample-db\", \"port\": 5432, \"schema\": \"analytics\", \"login\": \"$1\"," \
    "\"password\": \"$(secret 24)\", \"extra\": {\"options\": \"-c search_path=analytics,public\"}}'"
}

add POSTGRES_PASSWORD "$(secret 24)"
add REDIS_PASSWORD "$(secret 24)"
add SAMPLE_PASSWORD "$(secret 24)"
add AIRFLOW__CORE__FERNET_KEY "$(head -c 32 /dev/urandom | base64 | tr '/+' '_-')"
add AIRFLOW__API_AUTH__JWT_SECRET "$(secret 64)"
add AIRFLOW__API__SECRET_KEY "$(secret 32)"
add AIRFLOW_ADMIN_PASSWORD "$(secret 12)"
add AIRFLOW_CONN_ANALYTICS_DB "$(connection airflow_jobs)"
add AIRFLOW_CONN_ANALYTICS_READER "$(connection airflow_reader)"
echo "The secrets are in $(cd "$(dirname "$file")" && pwd)/.env."
