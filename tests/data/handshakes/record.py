# Relays one loopback connection and writes what each side sent: side (0 client, 1 server), length (u32), bytes.
import socket,struct,subprocess,sys,threading,time,os,select
def relay(listen_port, to_port, path, stop):
    l=socket.socket(); l.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1); l.bind(('127.0.0.1',listen_port)); l.listen(1)
    c,_=l.accept(); s=socket.create_connection(('127.0.0.1',to_port)); l.close()
    out=open(path,'wb'); open_={c,s}
    while open_:
        r,_,_=select.select(list(open_),[],[],3)
        if not r: break
        for x in r:
            try: d=x.recv(65536)
            except OSError: d=b''
            if not d:
                open_.discard(x)
                try: (s if x is c else c).shutdown(socket.SHUT_WR)
                except OSError: pass
                continue
            out.write(struct.pack('>BI',0 if x is c else 1,len(d))+d)
            try: (s if x is c else c).sendall(d)
            except OSError: pass
    out.close(); c.close(); s.close()
def run(name, server, client, n=1):
    port=15443; srv=subprocess.Popen(['openssl','s_server','-accept',f'127.0.0.1:{port}','-cert','cert.pem','-key','key.pem','-quiet','-www']+server,stdin=subprocess.DEVNULL,stdout=subprocess.DEVNULL,stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    for i in range(n):
        t=threading.Thread(target=relay,args=(15444,port,f'{name}.bin',None)); t.start(); time.sleep(0.2)
        sess=['-sess_out','s.pem'] if n>1 and i==0 else (['-sess_in','s.pem'] if n>1 else [])
        p=subprocess.run(['openssl','s_client','-connect','127.0.0.1:15444','-quiet']+client+sess,input=b'GET / HTTP/1.0\r\n\r\n',stdout=subprocess.DEVNULL,stderr=subprocess.DEVNULL,timeout=10)
        t.join()
    srv.terminate(); srv.wait()
subprocess.run("openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 3650 -subj '/C=DE/O=Example Org/CN=www.example.org' -addext 'subjectAltName=DNS:www.example.org,DNS:*.example.net,IP:192.0.2.1' -addext basicConstraints=critical,CA:FALSE -set_serial 0x0fa3b2",shell=True,check=True,stderr=subprocess.DEVNULL)
sni=['-servername','www.example.org']
run('tls13',['-alpn','h2,http/1.1'],sni+['-alpn','h2,http/1.1'])
run('tls13_retry',['-groups','P-384'],sni+['-groups','X25519:P-384'])
run('tls12',['-alpn','http/1.1','-tls1_2'],sni+['-alpn','h2,http/1.1'])
run('tls12_resumed',['-tls1_2'],sni+['-tls1_2'],2)
run('tls13_resumed',[],sni,2)
run('tls12_refused',['-tls1_2','-cipher','ECDHE-RSA-AES256-GCM-SHA384'],['-tls1_2','-cipher','ECDHE-RSA-AES128-GCM-SHA256','-noservername'])
