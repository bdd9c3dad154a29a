# A worker: the engine as a wheel, and beside it the four folders of this project.
#
#   docker build -t payments .
#   docker run -e SEMEL_BROKER=kafka://broker:9092 -v payments-state:/var/lib/semel payments pipelines.payments
#
# Its web views listen inside the container only. To open them: -e SEMEL_WEB_BIND=0.0.0.0 and a SEMEL_WEB_TOKEN_FILE.

FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY requirements.txt requirements-build.txt ./
RUN python3 -m venv /opt/build \
 && /opt/build/bin/pip install --no-cache-dir --require-hashes -r requirements-build.txt \
 && python3 -m venv /opt/semel \
 && /opt/semel/bin/pip install --no-cache-dir --require-hashes -r requirements.txt
COPY pyproject.toml README.md ./
COPY src src
RUN /opt/build/bin/python -m hatchling build -t wheel -d /wheels \
 && /opt/semel/bin/pip install --no-cache-dir --no-deps /wheels/semel-*.whl

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin semel \
 && install --directory --owner semel /var/lib/semel
COPY --from=build /opt/semel /opt/semel
WORKDIR /app
COPY pipelines pipelines
COPY agents agents
COPY tables tables
COPY config config
ENV PATH=/opt/semel/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    SEMEL_STATE_DIR=/var/lib/semel
# Losing it costs a restore from the changelogs, nothing else.
VOLUME /var/lib/semel
USER 10001
EXPOSE 6066
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD \
    ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:6066/livez', timeout=2)"]
ENTRYPOINT ["semel", "worker"]
CMD ["pipelines.payments"]
