/*
 * The part of PKCS#11 v2.40 that the faulty module needs: the names and values of the standard, nothing else.
 *
 * Structures whose inside we never look at stay incomplete or `void`. Unix layout (no packing).
 */
#ifndef HOLDFAST_PKCS11_MIN_H
#define HOLDFAST_PKCS11_MIN_H

typedef unsigned char CK_BYTE;
typedef unsigned long CK_ULONG;
typedef CK_BYTE CK_BBOOL;
typedef CK_ULONG CK_RV;
typedef CK_ULONG CK_FLAGS;
typedef CK_ULONG CK_SLOT;
typedef CK_ULONG CK_SESSION;
typedef CK_ULONG CK_OBJECT;

#define CKM_AES_GCM 0x1087UL

typedef struct {
    CK_BYTE major;
    CK_BYTE minor;
} CK_VERSION;

typedef struct {
    CK_ULONG mechanism;
    void *pParameter;
    CK_ULONG ulParameterLen;
} CK_MECHANISM;

typedef struct {
    CK_ULONG type;
    void *pValue;
    CK_ULONG ulValueLen;
} CK_ATTRIBUTE;

typedef struct {
    CK_BYTE *pIv;
    CK_ULONG ulIvLen;
    CK_ULONG ulIvBits;
    CK_BYTE *pAAD;
    CK_ULONG ulAADLen;
    CK_ULONG ulTagBits;
} CK_GCM_PARAMS;

/* The beginning of CK_TOKEN_INFO, up to the last member we lie about. */
typedef struct {
    CK_BYTE label[32];
    CK_BYTE manufacturerID[32];
    CK_BYTE model[16];
    CK_BYTE serialNumber[16];
    CK_FLAGS flags;
    CK_ULONG ulMaxSessionCount;
} CK_TOKEN_INFO_HEAD;

typedef struct CK_FUNCTION_LIST CK_FUNCTION_LIST;

/* Return values by name: CODE(name, value). */
#define CK_RETURN_VALUES(CODE)                        \
    CODE(CKR_OK, 0x000)                               \
    CODE(CKR_CANCEL, 0x001)                           \
    CODE(CKR_HOST_MEMORY, 0x002)                      \
    CODE(CKR_SLOT_ID_INVALID, 0x003)                  \
    CODE(CKR_GENERAL_ERROR, 0x005)                    \
    CODE(CKR_FUNCTION_FAILED, 0x006)                  \
    CODE(CKR_ARGUMENTS_BAD, 0x007)                    \
    CODE(CKR_CANT_LOCK, 0x00a)                        \
    CODE(CKR_ATTRIBUTE_READ_ONLY, 0x010)              \
    CODE(CKR_ATTRIBUTE_SENSITIVE, 0x011)              \
    CODE(CKR_ATTRIBUTE_TYPE_INVALID, 0x012)           \
    CODE(CKR_ATTRIBUTE_VALUE_INVALID, 0x013)          \
    CODE(CKR_DATA_INVALID, 0x020)                     \
    CODE(CKR_DATA_LEN_RANGE, 0x021)                   \
    CODE(CKR_DEVICE_ERROR, 0x030)                     \
    CODE(CKR_DEVICE_MEMORY, 0x031)                    \
    CODE(CKR_DEVICE_REMOVED, 0x032)                   \
    CODE(CKR_ENCRYPTED_DATA_INVALID, 0x040)           \
    CODE(CKR_ENCRYPTED_DATA_LEN_RANGE, 0x041)         \
    CODE(CKR_FUNCTION_CANCELED, 0x050)                \
    CODE(CKR_FUNCTION_NOT_SUPPORTED, 0x054)           \
    CODE(CKR_KEY_HANDLE_INVALID, 0x060)               \
    CODE(CKR_KEY_SIZE_RANGE, 0x062)                   \
    CODE(CKR_KEY_TYPE_INCONSISTENT, 0x063)            \
    CODE(CKR_KEY_FUNCTION_NOT_PERMITTED, 0x068)       \
    CODE(CKR_KEY_NOT_WRAPPABLE, 0x069)                \
    CODE(CKR_KEY_UNEXTRACTABLE, 0x06a)                \
    CODE(CKR_MECHANISM_INVALID, 0x070)                \
    CODE(CKR_MECHANISM_PARAM_INVALID, 0x071)          \
    CODE(CKR_OBJECT_HANDLE_INVALID, 0x082)            \
    CODE(CKR_OPERATION_ACTIVE, 0x090)                 \
    CODE(CKR_OPERATION_NOT_INITIALIZED, 0x091)        \
    CODE(CKR_PIN_INCORRECT, 0x0a0)                    \
    CODE(CKR_PIN_INVALID, 0x0a1)                      \
    CODE(CKR_PIN_LEN_RANGE, 0x0a2)                    \
    CODE(CKR_PIN_EXPIRED, 0x0a3)                      \
    CODE(CKR_PIN_LOCKED, 0x0a4)                       \
    CODE(CKR_SESSION_CLOSED, 0x0b0)                   \
    CODE(CKR_SESSION_COUNT, 0x0b1)                    \
    CODE(CKR_SESSION_HANDLE_INVALID, 0x0b3)           \
    CODE(CKR_SESSION_READ_ONLY, 0x0b5)                \
    CODE(CKR_SIGNATURE_INVALID, 0x0c0)                \
    CODE(CKR_TEMPLATE_INCOMPLETE, 0x0d0)              \
    CODE(CKR_TEMPLATE_INCONSISTENT, 0x0d1)            \
    CODE(CKR_TOKEN_NOT_PRESENT, 0x0e0)                \
    CODE(CKR_TOKEN_NOT_RECOGNIZED, 0x0e1)             \
    CODE(CKR_TOKEN_WRITE_PROTECTED, 0x0e2)            \
    CODE(CKR_USER_ALREADY_LOGGED_IN, 0x100)           \
    CODE(CKR_USER_NOT_LOGGED_IN, 0x101)               \
    CODE(CKR_USER_PIN_NOT_INITIALIZED, 0x102)         \
    CODE(CKR_USER_TYPE_INVALID, 0x103)                \
    CODE(CKR_WRAPPED_KEY_INVALID, 0x110)              \
    CODE(CKR_WRAPPED_KEY_LEN_RANGE, 0x112)            \
    CODE(CKR_RANDOM_NO_RNG, 0x121)                    \
    CODE(CKR_BUFFER_TOO_SMALL, 0x150)                 \
    CODE(CKR_SAVED_STATE_INVALID, 0x160)              \
    CODE(CKR_CRYPTOKI_NOT_INITIALIZED, 0x190)         \
    CODE(CKR_CRYPTOKI_ALREADY_INITIALIZED, 0x191)     \
    CODE(CKR_MUTEX_BAD, 0x1a0)                        \
    CODE(CKR_FUNCTION_REJECTED, 0x200)                \
    CODE(CKR_VENDOR_DEFINED, 0x80000000)

#define CK_ENUMERATOR(name, value) name = value,
enum { CK_RETURN_VALUES(CK_ENUMERATOR) CK_RETURN_VALUES_END };

/*
 * The functions of v2.40 in the order of CK_FUNCTION_LIST, all but C_GetFunctionList (which is fourth):
 * F(name, (parameters), (arguments), session, output, length of output).
 *
 * `output` is what a lie may change: a buffer (its length behind a pointer), the variable that holds a template (its
 * length likewise), or NULL.
 */
#define CK_FUNCTIONS_BEFORE_LIST(F)                                                                        \
    F(C_Initialize, (void *init), (init), 0, NULL, NULL)                                                   \
    F(C_Finalize, (void *reserved), (reserved), 0, NULL, NULL)                                             \
    F(C_GetInfo, (void *info), (info), 0, NULL, NULL)

#define CK_FUNCTIONS_AFTER_LIST(F)                                                                         \
    F(C_GetSlotList, (CK_BBOOL present, CK_SLOT *list, CK_ULONG *count), (present, list, count), 0, list, count) \
    F(C_GetSlotInfo, (CK_SLOT slot, void *info), (slot, info), 0, NULL, NULL)                              \
    F(C_GetTokenInfo, (CK_SLOT slot, void *info), (slot, info), 0, info, NULL)                             \
    F(C_GetMechanismList, (CK_SLOT slot, CK_ULONG *list, CK_ULONG *count), (slot, list, count), 0, list, count) \
    F(C_GetMechanismInfo, (CK_SLOT slot, CK_ULONG type, void *info), (slot, type, info), 0, NULL, NULL)    \
    F(C_InitToken, (CK_SLOT slot, CK_BYTE *pin, CK_ULONG len, CK_BYTE *label), (slot, pin, len, label), 0, NULL, NULL) \
    F(C_InitPIN, (CK_SESSION s, CK_BYTE *pin, CK_ULONG len), (s, pin, len), s, NULL, NULL)                 \
    F(C_SetPIN, (CK_SESSION s, CK_BYTE *from, CK_ULONG from_len, CK_BYTE *to, CK_ULONG to_len), (s, from, from_len, to, to_len), s, NULL, NULL) \
    F(C_OpenSession, (CK_SLOT slot, CK_FLAGS flags, void *app, void *notify, CK_SESSION *session), (slot, flags, app, notify, session), 0, NULL, NULL) \
    F(C_CloseSession, (CK_SESSION s), (s), s, NULL, NULL)                                                  \
    F(C_CloseAllSessions, (CK_SLOT slot), (slot), 0, NULL, NULL)                                           \
    F(C_GetSessionInfo, (CK_SESSION s, void *info), (s, info), s, NULL, NULL)                              \
    F(C_GetOperationState, (CK_SESSION s, CK_BYTE *out, CK_ULONG *len), (s, out, len), s, out, len)        \
    F(C_SetOperationState, (CK_SESSION s, CK_BYTE *in, CK_ULONG len, CK_OBJECT a, CK_OBJECT b), (s, in, len, a, b), s, NULL, NULL) \
    F(C_Login, (CK_SESSION s, CK_ULONG user, CK_BYTE *pin, CK_ULONG len), (s, user, pin, len), s, NULL, NULL) \
    F(C_Logout, (CK_SESSION s), (s), s, NULL, NULL)                                                        \
    F(C_CreateObject, (CK_SESSION s, void *t, CK_ULONG n, CK_OBJECT *o), (s, t, n, o), s, NULL, NULL)      \
    F(C_CopyObject, (CK_SESSION s, CK_OBJECT from, void *t, CK_ULONG n, CK_OBJECT *o), (s, from, t, n, o), s, NULL, NULL) \
    F(C_DestroyObject, (CK_SESSION s, CK_OBJECT o), (s, o), s, NULL, NULL)                                 \
    F(C_GetObjectSize, (CK_SESSION s, CK_OBJECT o, CK_ULONG *size), (s, o, size), s, NULL, NULL)           \
    F(C_GetAttributeValue, (CK_SESSION s, CK_OBJECT o, void *t, CK_ULONG n), (s, o, t, n), s, &t, &n)      \
    F(C_SetAttributeValue, (CK_SESSION s, CK_OBJECT o, void *t, CK_ULONG n), (s, o, t, n), s, NULL, NULL)  \
    F(C_FindObjectsInit, (CK_SESSION s, void *t, CK_ULONG n), (s, t, n), s, NULL, NULL)                    \
    F(C_FindObjects, (CK_SESSION s, CK_OBJECT *list, CK_ULONG max, CK_ULONG *count), (s, list, max, count), s, list, count) \
    F(C_FindObjectsFinal, (CK_SESSION s), (s), s, NULL, NULL)                                              \
    F(C_EncryptInit, (CK_SESSION s, CK_MECHANISM *m, CK_OBJECT key), (s, m, key), s, m, NULL)              \
    F(C_Encrypt, (CK_SESSION s, CK_BYTE *in, CK_ULONG n, CK_BYTE *out, CK_ULONG *len), (s, in, n, out, len), s, out, len) \
    F(C_EncryptUpdate, (CK_SESSION s, CK_BYTE *in, CK_ULONG n, CK_BYTE *out, CK_ULONG *len), (s, in, n, out, len), s, out, len) \
    F(C_EncryptFinal, (CK_SESSION s, CK_BYTE *out, CK_ULONG *len), (s, out, len), s, out, len)             \
    F(C_DecryptInit, (CK_SESSION s, CK_MECHANISM *m, CK_OBJECT key), (s, m, key), s, NULL, NULL)           \
    F(C_Decrypt, (CK_SESSION s, CK_BYTE *in, CK_ULONG n, CK_BYTE *out, CK_ULONG *len), (s, in, n, out, len), s, out, len) \
    F(C_DecryptUpdate, (CK_SESSION s, CK_BYTE *in, CK_ULONG n, CK_BYTE *out, CK_ULONG *len), (s, in, n, out, len), s, out, len) \
    F(C_DecryptFinal, (CK_SESSION s, CK_BYTE *out, CK_ULONG *len), (s, out, len), s, out, len)             \
    F(C_DigestInit, (CK_SESSION s, CK_MECHANISM *m), (s, m), s, NULL, NULL)                                \
    F(C_Digest, (CK_SESSION s, CK_BYTE *in, CK_ULONG n, CK_BYTE *out, CK_ULONG *len), (s, in, n, out, len), s, out, len) \
    F(C_DigestUpdate, (CK_SESSION s, CK_BYTE *in, CK_ULONG n), (s, in, n), s, NULL, NULL)                  \
    F(C_DigestKey, (CK_SESSION s, CK_OBJECT key), (s, key), s, NULL, NULL)                                 \
    F(C_DigestFinal, (CK_SESSION s, CK_BYTE *out, CK_ULONG *len), (s, out, len), s, out, len)              \
    F(C_SignInit, (CK_SESSION s, CK_MECHANISM *m, CK_OBJECT key), (s, m, key), s, NULL, NULL)              \
    F(C_Sign, (CK_SESSION s, CK_BYTE *in, CK_ULONG n, CK_BYTE *out, CK_ULONG *len), (s, in, n, out, len), s, out, len) \
    F(C_SignUpdate, (CK_SESSION s, CK_BYTE *in, CK_ULONG n), (s, in, n), s, NULL, NULL)                    \
    F(C_SignFinal, (CK_SESSION s, CK_BYTE *out, CK_ULONG *len), (s, out, len), s, out, len)                \
    F(C_SignRecoverInit, (CK_SESSION s, CK_MECHANISM *m, CK_OBJECT key), (s, m, key), s, NULL, NULL)       \
    F(C_SignRecover, (CK_SESSION s, CK_BYTE *in, CK_ULONG n, CK_BYTE *out, CK_ULONG *len), (s, in, n, out, len), s, out, len) \
    F(C_VerifyInit, (CK_SESSION s, CK_MECHANISM *m, CK_OBJECT key), (s, m, key), s, NULL, NULL)            \
    F(C_Verify, (CK_SESSION s, CK_BYTE *in, CK_ULONG n, CK_BYTE *sig, CK_ULONG len), (s, in, n, sig, len), s, NULL, NULL) \
    F(C_VerifyUpdate, (CK_SESSION s, CK_BYTE *in, CK_ULONG n), (s, in, n), s, NULL, NULL)                  \
    F(C_VerifyFinal, (CK_SESSION s, CK_BYTE *sig, CK_ULONG n), (s, sig, n), s, NULL, NULL)                 \
    F(C_VerifyRecoverInit, (CK_SESSION s, CK_MECHANISM *m, CK_OBJECT key), (s, m, key), s, NULL, NULL)     \
    F(C_VerifyRecover, (CK_SESSION s, CK_BYTE *in, CK_ULONG n, CK_BYTE *out, CK_ULONG *len), (s, in, n, out, len), s, out, len) \
    F(C_DigestEncryptUpdate, (CK_SESSION s, CK_BYTE *in, CK_ULONG n, CK_BYTE *out, CK_ULONG *len), (s, in, n, out, len), s, out, len) \
    F(C_DecryptDigestUpdate, (CK_SESSION s, CK_BYTE *in, CK_ULONG n, CK_BYTE *out, CK_ULONG *len), (s, in, n, out, len), s, out, len) \
    F(C_SignEncryptUpdate, (CK_SESSION s, CK_BYTE *in, CK_ULONG n, CK_BYTE *out, CK_ULONG *len), (s, in, n, out, len), s, out, len) \
    F(C_DecryptVerifyUpdate, (CK_SESSION s, CK_BYTE *in, CK_ULONG n, CK_BYTE *out, CK_ULONG *len), (s, in, n, out, len), s, out, len) \
    F(C_GenerateKey, (CK_SESSION s, CK_MECHANISM *m, void *t, CK_ULONG n, CK_OBJECT *o), (s, m, t, n, o), s, &t, &n) \
    F(C_GenerateKeyPair, (CK_SESSION s, CK_MECHANISM *m, void *t, CK_ULONG n, void *u, CK_ULONG k, CK_OBJECT *a, CK_OBJECT *b), (s, m, t, n, u, k, a, b), s, NULL, NULL) \
    F(C_WrapKey, (CK_SESSION s, CK_MECHANISM *m, CK_OBJECT by, CK_OBJECT key, CK_BYTE *out, CK_ULONG *len), (s, m, by, key, out, len), s, out, len) \
    F(C_UnwrapKey, (CK_SESSION s, CK_MECHANISM *m, CK_OBJECT by, CK_BYTE *in, CK_ULONG k, void *t, CK_ULONG n, CK_OBJECT *o), (s, m, by, in, k, t, n, o), s, NULL, NULL) \
    F(C_DeriveKey, (CK_SESSION s, CK_MECHANISM *m, CK_OBJECT from, void *t, CK_ULONG n, CK_OBJECT *o), (s, m, from, t, n, o), s, NULL, NULL) \
    F(C_SeedRandom, (CK_SESSION s, CK_BYTE *in, CK_ULONG n), (s, in, n), s, NULL, NULL)                    \
    F(C_GenerateRandom, (CK_SESSION s, CK_BYTE *out, CK_ULONG n), (s, out, n), s, out, &n)                 \
    F(C_GetFunctionStatus, (CK_SESSION s), (s), s, NULL, NULL)                                             \
    F(C_CancelFunction, (CK_SESSION s), (s), s, NULL, NULL)                                                \
    F(C_WaitForSlotEvent, (CK_FLAGS flags, CK_SLOT *slot, void *reserved), (flags, slot, reserved), 0, NULL, NULL)

#define CK_MEMBER(name, parameters, arguments, session, output, length) CK_RV(*name) parameters;
struct CK_FUNCTION_LIST {
    CK_VERSION version;
    CK_FUNCTIONS_BEFORE_LIST(CK_MEMBER)
    CK_RV (*C_GetFunctionList)(CK_FUNCTION_LIST **list);
    CK_FUNCTIONS_AFTER_LIST(CK_MEMBER)
};

#endif
