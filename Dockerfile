# The image of every role, with the build of torch that the package index has for this platform. Another build, for
# example a CPU one: docker compose build --build-arg PIP_EXTRA_INDEX_URL=<its index>
FROM python:3.11-slim
ARG PIP_EXTRA_INDEX_URL=""
WORKDIR /opt/piecework
RUN useradd --create-home piecework && mkdir /market && chown piecework /market
COPY pyproject.toml constraints.txt hatch_build.py README.md LICENSE ./
COPY contracts/artifacts contracts/artifacts
COPY model model
COPY node node
COPY piecework piecework
COPY protocol protocol
RUN pip install --no-cache-dir --constraint constraints.txt '.[demo]'
USER piecework
CMD ["piecework", "--help"]
