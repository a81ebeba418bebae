# The image of every role. CPU build; on a GPU host base it on a CUDA runtime and install the CUDA build of torch.
FROM python:3.11-slim
WORKDIR /opt/piecework
RUN useradd --create-home piecework && mkdir /market && chown piecework /market
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY bench bench
COPY chain chain
COPY client client
COPY contracts contracts
COPY market market
COPY model model
COPY node node
COPY piecework piecework
COPY protocol protocol
RUN pip install --no-cache-dir --constraint constraints.txt '.[demo]'
USER piecework
CMD ["piecework", "--help"]
