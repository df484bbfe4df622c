#!/bin/sh
# Start the cluster of compose.yml and make it one.
set -eu
cd "$(dirname "$0")"
docker compose up --build --detach
for node in coordinator worker1 worker2; do
    until docker compose exec "$node" pg_isready -h localhost -U postgres; do sleep 1; done
    docker compose exec "$node" psql -U postgres -c \
        "CREATE EXTENSION IF NOT EXISTS citus" -c "CREATE EXTENSION IF NOT EXISTS vector"
done
docker compose exec coordinator psql -U postgres \
    -c "SELECT citus_set_coordinator_host('coordinator')" \
    -c "SELECT citus_add_node('worker1', 5432)" \
    -c "SELECT citus_add_node('worker2', 5432)"
